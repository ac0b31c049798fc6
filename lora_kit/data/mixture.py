"""Mixtures: how many rows each source gives, and which."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lora_kit.data.row_sets import Rows, joined
from lora_kit.recipe.data import DataSpec
from lora_kit.runtime.errors import DataError


def mix(several: Sequence[Rows], spec: DataSpec, seed: int) -> Rows:
    """Draw rows of several sources in proportion to their weights, or by temperature.

    A source with fewer rows than it has to give is repeated in whole passes, each in an order of
    its own, and what then lacks is drawn without replacement, as is all of a larger source. The
    sources are spread evenly over the whole, so that a pass is over before the next begins.

    Args:
        several: the rows of each of `spec.train`.
        spec: with weights or a temperature.
        seed: the recipe's.

    Raises:
        DataError: if a source would give no row at all.
    """
    sizes = [len(rows) for rows in several]
    total = spec.rows or sum(sizes)
    counts = mixture_counts(_weights(spec, sizes), total)
    if 0 in counts:
        source = spec.train[counts.index(0)].source
        raise DataError(
            f"data: a mixture of {total} rows has none of {source}; raise its weight, data.rows or "
            "data.temperature, or leave the source out"
        )
    parts, keys = [], []
    for index, (rows, count) in enumerate(zip(several, counts, strict=True)):
        generator = _generator(seed, index)
        chosen = _draw(len(rows), count, generator)
        parts.append(Rows(rows.sources, rows.parts[chosen], rows.numbers[chosen]))
        keys.append((np.arange(count) + generator.random_sample(count)) / count)
    whole = joined(parts)
    order = np.argsort(np.concatenate(keys), kind="stable")
    return Rows(whole.sources, whole.parts[order], whole.numbers[order])


def mixture_counts(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to weights that sum to `total`: the largest remainders are given.

    Of equal remainders, the first.
    """
    # In fractions, so that the shares sum to the total and equal remainders are equal.
    exact = [Fraction(weight) for weight in weights]
    shares = [total * weight / sum(exact) for weight in exact]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def _weights(spec: DataSpec, sizes: Sequence[int]) -> list[float]:
    """Of each source; by temperature n^(1/T) (Raffel et al. 2020, arXiv:1910.10683, 3.5.2)."""
    if spec.temperature is None:
        return [source.weight or 0.0 for source in spec.train]
    # Scaled by the largest: a low temperature would raise the sizes beyond what floats hold.
    largest = math.log(max(sizes))
    return [math.exp((math.log(size) - largest) / spec.temperature) for size in sizes]


def _draw(size: int, count: int, generator: np.random.RandomState) -> NDArray[np.int64]:
    """The numbers of `count` of `size` rows, each as often as any other, but for one time."""
    passes = [generator.permutation(size) for _ in range(-(-count // size))]
    return np.concatenate(passes)[:count].astype(np.int64)


def _generator(seed: int, index: int) -> np.random.RandomState:
    # The older generator, whose numbers NumPy has promised not to change.
    digest = hashlib.sha256(f"{seed}/mixture/{index}".encode()).digest()
    return np.random.RandomState(int.from_bytes(digest[:4], "big"))
