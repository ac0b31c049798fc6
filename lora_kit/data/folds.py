"""Folds of a cross-validation: which rows are held out together."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lora_kit.runtime.errors import DataError


def split_folds(
    labels: Sequence[str] | None, groups: NDArray[np.int64], folds: int, seed: int
) -> NDArray[np.int64]:
    """Return the fold in which each row is held out, (rows,) int64.

    Args:
        labels: class of each row, of which each fold gets its share; `None` without classes.
        groups: (rows,) int64; dependent rows share a group, and are held out together.
        folds: number of folds.
        seed: seed of the assignment of groups.

    Raises:
        DataError: if there are fewer groups than folds, or a class is in one fold alone.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    count = len(np.unique(groups))
    if count < folds:
        raise DataError(
            f"data.cross_validation: more folds than groups of dependent rows (got {folds} folds, "
            f"{count} groups). Fix: lower it, or add rows of other groups"
        )
    kind = GroupKFold if labels is None else StratifiedGroupKFold
    rows = np.zeros(len(groups))
    found = np.zeros(len(groups), np.int64)
    with warnings.catch_warnings():
        # scikit-learn warns if a fold has no row of some class, which is refused below.
        warnings.simplefilter("ignore", UserWarning)
        parts = kind(folds, shuffle=True, random_state=seed).split(rows, labels, groups)
        for number, (_, held_out) in enumerate(parts):
            found[held_out] = number
    if labels is not None:
        _refuse_lonely_class(np.array(labels), found)
    return found


def _refuse_lonely_class(labels: NDArray[np.str_], folds: NDArray[np.int64]) -> None:
    """Refuse a class without training rows in the fold where it is held out."""
    for name in np.unique(labels):
        if len(np.unique(folds[labels == name])) < 2:
            raise DataError(
                f"data.cross_validation: all rows of a class are held out in one fold (got "
                f"{str(name)!r}, whose rows depend on one another). Fix: add rows of other groups, "
                "or leave the class out"
            )
