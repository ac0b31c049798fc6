"""Mixtures of sources: number of rows drawn from each source, and the draw itself."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from lora_kit.data.row_sets import Rows, concatenate_rows
from lora_kit.recipe.data import DataSpec
from lora_kit.runtime.errors import DataError


def mix(sources: Sequence[Rows], spec: DataSpec, seed: int) -> Rows:
    """Draw rows of the sources in proportion to their weights, or by temperature.

    A source with fewer rows than its share is repeated in complete passes, each in another order;
    the remainder is drawn without replacement, as are all rows of a larger source. Each source is
    spread evenly over the mixture, so that one pass ends before the next begins.

    Args:
        sources: rows of each source in `spec.train`.
        spec: the recipe's `data` section, with weights or a temperature.
        seed: the recipe's seed.

    Raises:
        DataError: if the mixture would have no row of some source.
    """
    sizes = [len(rows) for rows in sources]
    total = spec.rows or sum(sizes)
    counts = mixture_counts(_weights(spec, sizes), total)
    if 0 in counts:
        source = spec.train[counts.index(0)].source
        raise DataError(
            f"data: a mixture of {total} rows has none of {source}. Fix: raise its weight, "
            "data.rows or data.temperature, or remove the source"
        )
    parts, keys = [], []
    for index, (rows, count) in enumerate(zip(sources, counts, strict=True)):
        generator = _generator(seed, index)
        # Complete passes: the counts per row differ by at most one.
        passes = [generator.permutation(len(rows)) for _ in range(-(-count // len(rows)))]
        chosen = np.concatenate(passes)[:count].astype(np.int64)
        parts.append(Rows(rows.sources, rows.parts[chosen], rows.numbers[chosen]))
        keys.append((np.arange(count) + generator.random_sample(count)) / count)
    drawn = concatenate_rows(parts)
    order = np.argsort(np.concatenate(keys), kind="stable")
    return Rows(drawn.sources, drawn.parts[order], drawn.numbers[order])


def mixture_counts(weights: Sequence[float], total: int) -> list[int]:
    """Return integers in proportion to `weights` that sum to `total`.

    The largest-remainder method rounds up; ties go to the earlier source.
    """
    # Exact fractions: shares sum to the total, and equal remainders compare equal.
    exact = [Fraction(weight) for weight in weights]
    shares = [total * weight / sum(exact) for weight in exact]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def _weights(spec: DataSpec, sizes: Sequence[int]) -> list[float]:
    """Return the weight of each source.

    With a temperature T, a source of n rows has the weight n^(1/T) (Raffel et al. 2020,
    arXiv:1910.10683, 3.5.2).
    """
    if spec.temperature is None:
        return [source.weight or 0.0 for source in spec.train]
    # Scaled by the largest: with a low temperature, the powers would overflow a float.
    largest = math.log(max(sizes))
    return [math.exp((math.log(size) - largest) / spec.temperature) for size in sizes]


def _generator(seed: int, index: int) -> np.random.RandomState:
    # The legacy generator: NumPy guarantees that its stream of numbers does not change.
    digest = hashlib.sha256(f"{seed}/mixture/{index}".encode()).digest()
    return np.random.RandomState(int.from_bytes(digest[:4], "big"))
