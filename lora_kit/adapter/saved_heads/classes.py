"""Description of a saved classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lora_kit.adapter.saved_heads.checks import RESTORE
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.runtime.errors import AdapterError


@dataclass(frozen=True)
class SavedClasses:
    """Classes of a saved adapter.

    Attributes:
        rows: number of training rows per class, in the order of the outputs.
    """

    FILE: ClassVar[str] = "classes.json"

    rows: dict[str, int]

    @property
    def outputs(self) -> HeadOutputs:
        """Outputs of the head."""
        return HeadOutputs("classification", tuple(self.rows))

    @property
    def most_frequent(self) -> str:
        """The class with the most training rows; the first in output order on ties."""
        return max(self.rows, key=self.rows.__getitem__)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {"training_rows": self.rows}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], path: Path) -> SavedClasses:
        """Read the content of the file.

        Raises:
            AdapterError: if it is not valid.
        """
        rows = value.get("training_rows")
        if (
            not isinstance(rows, dict)
            or not rows
            or not all(isinstance(n, int) for n in rows.values())
        ):
            raise AdapterError(
                f"{path}: training_rows must be a number of rows for each class (got "
                f"{rows!r:.80}). {RESTORE}"
            )
        return cls(rows)
