"""Description of a saved multi-label head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lora_kit.adapter.saved_heads.checks import RESTORE, are_numbers
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.runtime.errors import AdapterError


@dataclass(frozen=True)
class SavedLabels:
    """Labels of a saved multi-label head.

    Attributes:
        rows: number of training rows.
        counts: number of training rows that have a label, in the order of the outputs.
        thresholds: probability from which on a label is predicted.
        validation_rows: number of rows on which the thresholds were chosen; 0 if they were given.
    """

    FILE: ClassVar[str] = "labels.json"

    rows: int
    counts: dict[str, int]
    thresholds: dict[str, float]
    validation_rows: int

    @property
    def outputs(self) -> HeadOutputs:
        """Outputs of the head."""
        return HeadOutputs("multi-label", tuple(self.counts))

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {
            "training_rows": self.rows,
            "counts": self.counts,
            "thresholds": self.thresholds,
            "validation_rows": self.validation_rows,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], path: Path) -> SavedLabels:
        """Read the content of the file.

        Raises:
            AdapterError: if it is not valid.
        """
        names = ("training_rows", "counts", "thresholds", "validation_rows")
        rows, counts, thresholds, chosen_on = (value.get(name) for name in names)
        are_whole = isinstance(rows, int) and isinstance(chosen_on, int)
        if not are_whole or not (are_numbers(counts) and are_numbers(thresholds)):
            raise AdapterError(
                f"{path}: training_rows and validation_rows must be whole numbers, counts and "
                f"thresholds a number for each label (got {counts!r:.40} and {thresholds!r:.40}). "
                f"{RESTORE}"
            )
        return cls(rows, counts, thresholds, chosen_on)  # type: ignore[arg-type]
