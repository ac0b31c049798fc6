"""Suspected label errors by confident learning (Northcutt et al. 2021, arXiv:1911.00068).

From out-of-fold probabilities, cleanlab estimates the joint distribution of given and true labels,
whose off-diagonal part is the number of wrong labels. That many rows are suspected: those whose
label has the lowest probability, unless it is the most probable one. With a tenth of the labels
exchanged and folds of rows, this had a precision of 0.41 at a recall of 0.84; the paper's pruning
by class, by noise rate and by both had 0.32 to 0.35 at 0.82 to 0.90 (tests/benchmarks/RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_kit.recipe.data import LabelErrorAction
from lora_kit.runtime.errors import DataError

# Largest share of suspects that is weighed down or dropped: beyond it, the probe rather than the
# labels is wrong. On stdlib-areas with folds of clusters, a probe that found 42% of the labels
# again suspected 52% of the rows, 15% of them rightly; without them, macro-F1 fell from 0.53 to
# 0.26 (tests/benchmarks/RESULTS.md).
MAX_SHARE = 0.3
# Suspects named in a summary.
NAMED = 5
# Lowest weight of a suspect: a step of suspects alone is divided by the sum of their weights.
MIN_WEIGHT = 1e-3


@dataclass(frozen=True)
class SuspectedLabel:
    """Row whose label looks wrong.

    Attributes:
        row: index of the row among all rows.
        origin: origin of the row.
        label: label of the row.
        probability: out-of-fold probability of that label.
        suggestion: most probable label.
        suggestion_probability: out-of-fold probability of the suggestion.
    """

    row: int
    origin: str
    label: str
    probability: float
    suggestion: str
    suggestion_probability: float


@dataclass(frozen=True)
class LabelErrors:
    """Result of a search for label errors.

    Attributes:
        action: `data.audit.label_errors`: what is done with the suspects.
        rows: rows searched.
        unknown: rows among them that cannot be judged, since no row of their class is in another
            fold.
        accuracy: share of the rows whose label is the most probable one, out of fold.
        suspects: suspected rows, the least probable label first.
    """

    action: LabelErrorAction
    rows: int
    unknown: int
    accuracy: float
    suspects: tuple[SuspectedLabel, ...] = ()

    @property
    def share(self) -> float:
        """Return the fraction of the rows that are suspected."""
        return len(self.suspects) / max(self.rows, 1)

    @property
    def is_doubtful(self) -> bool:
        """Return True if so many rows are suspected that the probe is not to be trusted."""
        return self.share > MAX_SHARE

    @property
    def dropped(self) -> int:
        """Return the number of rows that are left out of the training."""
        return len(self.suspects) if self.action == "drop" else 0

    @property
    def weights(self) -> dict[int, float]:
        """Return the weight of each suspect in the loss by its row; empty unless they have one.

        A row has the probability of its label as its weight, all others have 1.
        """
        if self.action != "weigh_down":
            return {}
        return {one.row: max(one.probability, MIN_WEIGHT) for one in self.suspects}

    def kept(self) -> NDArray[np.bool_]:
        """Return the rows that are trained on, (rows,) bool."""
        kept = np.ones(self.rows, np.bool_)
        if self.action == "drop":
            kept[[one.row for one in self.suspects]] = False
        return kept

    def summary(self) -> dict[str, Any]:
        """Return counts and the first suspects, for the record of a run."""
        first = [asdict(one) for one in self.suspects[:NAMED]]
        counts = {"suspects": len(self.suspects), "share": self.share}
        facts = {"action": self.action, "rows": self.rows, "unknown": self.unknown}
        changed = {"dropped": self.dropped, "weighed_down": len(self.weights)}
        return {**facts, "accuracy": self.accuracy, **counts, **changed, "first": first}

    def to_dict(self) -> dict[str, Any]:
        """Return the result with all suspects as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> LabelErrors:
        """Restore a result from the output of `to_dict`."""
        suspects = tuple(SuspectedLabel(**one) for one in value["suspects"])
        return cls(**{**value, "suspects": suspects})


def require_cleanlab() -> None:
    """Refuse a search for label errors without cleanlab.

    Raises:
        DataError: if it is not installed.
    """
    try:
        import cleanlab  # noqa: F401
    except ImportError as error:
        raise DataError(
            "data.audit.label_errors: needs cleanlab, which is not installed (got no module "
            "cleanlab). Fix: pip install 'lora-kit[labels]'"
        ) from error


def suspected_rows(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the rows whose label is probably wrong, the least probable label first.

    Args:
        probabilities: (rows, classes) float64, out-of-fold probabilities.
        labels: (rows,) int64, class of each row.

    Returns:
        (suspects,) int64, indices of rows.
    """
    from cleanlab.filter import find_label_issues

    # One process: the arrays are small, and workers would import everything again.
    found = find_label_issues(
        labels,
        probabilities,
        filter_by="low_self_confidence",
        return_indices_ranked_by="self_confidence",
        n_jobs=1,
    )
    return np.asarray(found, np.int64)


def describe_suspects(
    rows: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    origins: Sequence[str],
) -> tuple[SuspectedLabel, ...]:
    """Describe suspected rows.

    Args:
        rows: (suspects,) int64, indices of suspected rows.
        probabilities: (rows, classes) float64, of all rows.
        labels: (rows,) int64, class of each row.
        classes: class names.
        origins: origin of each row.
    """
    best = probabilities.argmax(axis=1)
    return tuple(
        SuspectedLabel(
            row=row,
            origin=origins[row],
            label=classes[labels[row]],
            probability=round(float(probabilities[row, labels[row]]), 6),
            suggestion=classes[best[row]],
            suggestion_probability=round(float(probabilities[row, best[row]]), 6),
        )
        for row in rows.tolist()
    )
