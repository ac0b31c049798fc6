"""Choice of texts to label next: uncertain ones that differ from each other and from known rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Strategy = Literal["both", "margin", "entropy", "diversity"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
# With `both`, the most uncertain texts from which the diverse ones are chosen, for each chosen one.
CANDIDATES = 5
# Texts compared with all known rows at once.
_BLOCK = 1024


@dataclass(frozen=True)
class Choice:
    """A chosen text.

    Attributes:
        index: index of the text.
        distance: cosine distance to the nearest row that is labelled or was chosen before; `None`
            if the choice does not look at it.
    """

    index: int
    distance: float | None = None


def margins(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the difference of the two highest probabilities of each row, (rows,) float64.

    Args:
        probabilities: (rows, classes) float64.
    """
    two = np.sort(probabilities, axis=1)[:, -2:]
    return np.asarray(two[:, 1] - two[:, 0])


def entropies(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of each row in nats, (rows,) float64.

    Args:
        probabilities: (rows, classes) float64.
    """
    logs = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    return np.asarray(-(probabilities * logs).sum(axis=1))


def choose_texts(
    probabilities: NDArray[np.float64],
    features: NDArray[np.float32],
    known: NDArray[np.float32],
    count: int,
    strategy: Strategy,
) -> list[Choice]:
    """Choose texts to label.

    `margin` and `entropy` take the most uncertain ones (Settles 2009, "Active Learning Literature
    Survey", 3.1). `diversity` takes the text that is farthest from all known and chosen ones, again
    and again (the greedy k-centre of Sener & Savarese 2018, arXiv:1708.00489). `both` does so among
    the `CANDIDATES` times as many texts with the smallest margins.

    Args:
        probabilities: (texts, classes) float64, of the classifier.
        features: (texts, features) float32.
        known: (rows, features) float32, features of the labelled rows.
        count: number of texts to choose, at most all.
        strategy: way of choosing.

    Returns:
        The chosen texts, in the order in which they were chosen.
    """
    uncertain = -entropies(probabilities) if strategy == "entropy" else margins(probabilities)
    ranked = np.argsort(uncertain, kind="stable")
    if strategy in ("margin", "entropy"):
        return [Choice(index) for index in ranked[:count].tolist()]
    if strategy == "both":
        candidates = np.sort(ranked[: CANDIDATES * count])
    else:
        candidates = np.arange(len(features))
    chosen = k_centre(features[candidates], known, count)
    return [Choice(int(candidates[place]), distance) for place, distance in chosen]


def k_centre(
    features: NDArray[np.float32], known: NDArray[np.float32], count: int
) -> list[tuple[int, float]]:
    """Return rows, each the farthest from known rows and those before it, with the distance.

    Args:
        features: (rows, features) float32.
        known: (known rows, features) float32, at least one.
        count: number of rows to return.

    Returns:
        Index and cosine distance of each row.
    """
    points, centres = _unit(features), _unit(known)
    nearest = np.concatenate(
        [
            1 - (points[start : start + _BLOCK] @ centres.T).max(axis=1)
            for start in range(0, len(points), _BLOCK)
        ]
    )
    chosen: list[tuple[int, float]] = []
    for _ in range(min(count, len(points))):
        farthest = int(nearest.argmax())
        chosen.append((farthest, max(float(nearest[farthest]), 0.0)))
        nearest = np.minimum(nearest, 1 - points @ points[farthest])
        nearest[farthest] = -np.inf  # also where a copy of it has the distance 0
    return chosen


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, np.finfo(np.float32).tiny))
