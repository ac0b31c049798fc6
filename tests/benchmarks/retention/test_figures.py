"""Shares of plain LoRA's gain and forgetting: their intervals cover, and are refused without it."""

from __future__ import annotations

import numpy as np

from tests.benchmarks.retention.figures import Change, share

SEEDS, ITEMS = 3, 40


def test_interval_of_a_share_covers_the_true_share() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        plain = _drawn(generator, 1.0)
        # Half of plain LoRA's, on the same items and seeds, with noise of its own.
        own = _drawn(generator, 0.0)
        half = Change({"task": 0.5 * plain.values["task"] + own.values["task"]}, plain.clusters)
        found = share(half, plain)
        assert found is not None
        covered += found[1] <= 0.5 <= found[2]
    assert covered >= 184


def test_no_share_of_what_is_not_shown_to_be_there() -> None:
    generator = np.random.default_rng(1)
    nothing = _drawn(generator, 0.0)
    assert share(_drawn(generator, 1.0), nothing) is None


def test_mean_weighs_tasks_alike() -> None:
    values = {"few": np.ones((2, 3)), "many": np.zeros((2, 90))}
    clusters = {"few": list("abc"), "many": [str(n) for n in range(90)]}
    assert Change(values, clusters).mean == 0.5


def _drawn(generator: np.random.Generator, mean: float) -> Change:
    of_items = generator.normal(0, 0.5, ITEMS)
    of_seeds = generator.normal(0, 0.1, (SEEDS, 1))
    noise = generator.normal(0, 0.3, (SEEDS, ITEMS))
    return Change(
        {"task": mean + of_items + of_seeds + noise}, {"task": [str(n) for n in range(ITEMS)]}
    )
