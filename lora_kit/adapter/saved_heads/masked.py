"""Description of a saved adapter of a masked language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from lora_kit.adapter.saved_heads.checks import RESTORE
from lora_kit.backbone.heads import MASKED, HeadOutputs
from lora_kit.runtime.errors import AdapterError


@dataclass(frozen=True)
class SavedMasked:
    """Training texts of a saved masked language model.

    Attributes:
        texts: number of training examples.
        probability: probability of each token to be predicted.
        new_layers: names of the head's layers that the backbone has no weights for.
    """

    FILE: ClassVar[str] = "mlm.json"

    texts: int
    probability: float
    new_layers: tuple[str, ...]

    @property
    def outputs(self) -> HeadOutputs:
        """Outputs of the head."""
        return MASKED

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], path: Path) -> SavedMasked:
        """Read the content of the file.

        Raises:
            AdapterError: if it is not valid.
        """
        texts, probability, layers = (
            value.get(name) for name in ("texts", "probability", "new_layers")
        )
        are_names = isinstance(layers, list) and all(isinstance(name, str) for name in layers)
        if not isinstance(texts, int) or not isinstance(probability, float) or not are_names:
            raise AdapterError(
                f"{path}: texts must be a whole number, probability a number and new_layers a list "
                f"of names (got {texts!r:.20}, {probability!r:.20} and {layers!r:.40}). {RESTORE}"
            )
        return cls(texts, probability, tuple(layers or ()))
