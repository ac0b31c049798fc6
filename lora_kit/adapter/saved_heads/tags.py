"""Description of a saved token classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lora_kit.adapter.saved_heads.checks import RESTORE, are_numbers
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.runtime.errors import AdapterError


@dataclass(frozen=True)
class SavedTags:
    """Tags of a saved token classifier.

    Attributes:
        rows: number of training rows.
        counts: number of training words that have a tag, in the order of the outputs.
        words: for each word that has another tag than `O` in a training row, the number of times
            that it has each of its tags.
    """

    FILE: ClassVar[str] = "tags.json"

    rows: int
    counts: dict[str, int]
    words: dict[str, dict[str, int]]

    @property
    def outputs(self) -> HeadOutputs:
        """Outputs of the head."""
        return HeadOutputs("token-classification", tuple(self.counts))

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {"training_rows": self.rows, "counts": self.counts, "words": self.words}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], path: Path) -> SavedTags:
        """Read the content of the file.

        Raises:
            AdapterError: if it is not valid.
        """
        rows, counts, words = (value.get(name) for name in ("training_rows", "counts", "words"))
        are_counts = (
            are_numbers(counts)
            and isinstance(words, dict)
            and all(are_numbers(one) and set(one) <= set(counts or ()) for one in words.values())
        )
        if not isinstance(rows, int) or not are_counts:
            raise AdapterError(
                f"{path}: training_rows must be a whole number, counts and each of words a number "
                f"for each tag (got {rows!r:.20}, {counts!r:.40} and {words!r:.40}). {RESTORE}"
            )
        return cls(rows, counts, words)  # type: ignore[arg-type]
