"""Description of a saved regression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lora_kit.adapter.saved_heads.checks import RESTORE, are_numbers
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.runtime.errors import AdapterError


@dataclass(frozen=True)
class SavedNumbers:
    """Numbers of a saved regression.

    Attributes:
        rows: number of training rows.
        means: mean of each number over the training rows, in the order of the outputs.
        deviations: standard deviation of each number over the training rows.
    """

    FILE: ClassVar[str] = "numbers.json"

    rows: int
    means: dict[str, float]
    deviations: dict[str, float]

    @property
    def outputs(self) -> HeadOutputs:
        """Outputs of the head."""
        return HeadOutputs("regression", tuple(self.means))

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {"training_rows": self.rows, "means": self.means, "deviations": self.deviations}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], path: Path) -> SavedNumbers:
        """Read the content of the file.

        Raises:
            AdapterError: if it is not valid.
        """
        rows, means, deviations = (
            value.get(name) for name in ("training_rows", "means", "deviations")
        )
        if not isinstance(rows, int) or not (are_numbers(means) and are_numbers(deviations)):
            raise AdapterError(
                f"{path}: training_rows must be a whole number, means and deviations a number for "
                f"each output (got {rows!r:.20}, {means!r:.40} and {deviations!r:.40}). {RESTORE}"
            )
        return cls(rows, means, deviations)  # type: ignore[arg-type]
