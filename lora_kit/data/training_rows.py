"""Training rows of a recipe, with those that the base generated or labelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_kit.data.audit.label_errors import LabelErrors
from lora_kit.data.row_sets import Rows


@dataclass(frozen=True)
class TrainingRows:
    """Training rows, and the part of them that the base generated.

    Attributes:
        rows: all training rows, replay included.
        replay: number of replay rows.
        generated: records that the base generated, by kind: `replay`, rows; `answers`, rewritten
            answers; `pseudo_labels`; `weights`.
        label_errors: suspected label errors, if the recipe asks for a search; rows that it drops
            are not in `rows`.
        own: rows of `data.train` that are trained on; `None` for all of them.
        weights: weight in the loss of rows by their index; 1 for the others.
    """

    rows: Rows
    replay: int
    generated: Mapping[str, Any] = field(default_factory=dict)
    label_errors: LabelErrors | None = None
    own: Rows | None = None
    weights: Mapping[int, float] = field(default_factory=dict)

    def sources_of(self, sources: Rows) -> Rows:
        """Return the rows of `data.train` that are trained on.

        Args:
            sources: all rows of `data.train`.
        """
        return sources if self.own is None else self.own
