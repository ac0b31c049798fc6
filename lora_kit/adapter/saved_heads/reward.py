"""Description of a saved reward model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from lora_kit.adapter.saved_heads.checks import RESTORE
from lora_kit.backbone.heads import REWARD, HeadOutputs
from lora_kit.runtime.errors import AdapterError


@dataclass(frozen=True)
class SavedReward:
    """Training pairs of a saved reward model.

    Attributes:
        pairs: number of training pairs.
        per_token: log-odds that an answer is the chosen one, per token that it is longer than the
            other; the information in length alone.
    """

    FILE: ClassVar[str] = "reward.json"

    pairs: int
    per_token: float

    @property
    def outputs(self) -> HeadOutputs:
        """Outputs of the head."""
        return REWARD

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], path: Path) -> SavedReward:
        """Read the content of the file.

        Raises:
            AdapterError: if it is not valid.
        """
        pairs, per_token = value.get("pairs"), value.get("per_token")
        if not isinstance(pairs, int) or not isinstance(per_token, float | int):
            raise AdapterError(
                f"{path}: pairs must be a whole number and per_token a number (got {pairs!r:.40} "
                f"and {per_token!r:.40}). {RESTORE}"
            )
        return cls(pairs, float(per_token))
