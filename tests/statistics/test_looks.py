"""Looks: their sizes and order, and the power that is left."""

import numpy as np
import pytest
from scipy.stats import norm

from lora_kit.statistics.looks import Looks, ordered_clusters, power_left


@pytest.mark.parametrize(
    ("clusters", "ends"),
    [
        (1, (1,)),
        (79, (79,)),
        (80, (40, 80)),
        (199, (50, 100, 150, 199)),
        (201, (41, 81, 121, 161, 201)),
        (1000, (200, 400, 600, 800, 1000)),
    ],
)
def test_looks_are_equal_parts_and_none_is_small(clusters: int, ends: tuple[int, ...]) -> None:
    looks = Looks.plan(clusters, 5, 0.05, -4)
    assert looks.ends == ends
    assert len(looks.levels) == len(ends)
    assert list(looks.levels) == sorted(looks.levels)
    assert looks.shares[-1] == 1


@pytest.mark.parametrize(
    ("clusters", "ends", "shape"),
    [
        (23, (23,), -4),
        (25, (13, 25), -10),
        (79, (16, 32, 48, 64, 79), -10),
        (80, (40, 80), -4),
        (1000, (200, 400, 600, 800, 1000), -4),
    ],
)
def test_graded_scores_have_looks_at_few_clusters(
    clusters: int, ends: tuple[int, ...], shape: float
) -> None:
    looks = Looks.plan(clusters, 5, 0.05, -4, graded=True)
    assert (looks.ends, looks.shape) == (ends, shape)
    assert Looks.plan(clusters, 5, 0.05, -20, graded=True).shape == -20
    assert Looks.plan(clusters, 1, 0.05, -4, graded=True) == Looks((clusters,), 0.05, -4)
    if len(ends) == 2 and clusters < 80:
        assert looks.levels[0] < 0.001


def test_one_look_is_a_fixed_test() -> None:
    look = Looks.plan(500, 1, 0.05, -4).look(1)
    assert look.level == 0.05
    assert look.is_last
    assert look.repeated_p(0.0123) == 0.0123
    assert not look.is_futile((0.5, 0.5))


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_repeated_p_is_below_alpha_where_the_look_decides(number: int) -> None:
    look = Looks.plan(500, 5, 0.05, -4).look(number)
    assert look.repeated_p(look.level) == pytest.approx(0.05, rel=1e-3)
    assert look.repeated_p(0.9 * look.level) < 0.05 < look.repeated_p(1.1 * look.level)
    p_values = [0.0, 1e-12, 1e-4, 0.01, 0.04, 0.3, 0.7, 1.0]
    repeated = [look.repeated_p(p) for p in p_values]
    assert repeated == sorted(repeated)
    assert all(a >= p for a, p in zip(repeated, p_values, strict=True))


def test_a_task_is_futile_where_neither_decision_is_probable() -> None:
    looks = Looks.plan(500, 5, 0.05, -4)
    assert looks.look(4).is_futile((0.4, 0.6))
    assert not looks.look(4).is_futile((0.03, 0.97))
    assert not looks.look(4).is_futile((0.97, 0.03))
    assert not looks.look(1).is_futile((0.4, 0.6))
    assert not looks.look(5).is_futile((0.4, 0.6))


@pytest.mark.parametrize(("effect", "share"), [(0.0, 0.83), (8.0, 0.26), (-8.0, 0.26)])
def test_the_expected_share_is_least_far_from_the_threshold(effect: float, share: float) -> None:
    looks = Looks.plan(500, 5, 0.05, -4)
    assert looks.expected_share(effect) == pytest.approx(share, abs=0.03)
    assert Looks.plan(500, 1, 0.05, -4).expected_share(effect) == 1


def test_the_order_is_drawn_from_seed_and_task_and_grows() -> None:
    few, more = [str(n) for n in range(50)], [str(n) for n in range(200)]
    order = ordered_clusters(few * 2, 0, "suite/task")
    assert sorted(order) == sorted(few)
    assert order != tuple(few)
    assert order != ordered_clusters(few, 1, "suite/task")
    assert order != ordered_clusters(few, 0, "suite/other")
    assert order == ordered_clusters(few[::-1], 0, "suite/task")
    assert tuple(one for one in ordered_clusters(more, 0, "suite/task") if one in few) == order
    here, there = ([f"{folder}/rows.jsonl:{n}" for n in range(50)] for folder in ("/a", "/b/c"))
    places = [here.index(one) for one in ordered_clusters(here, 0, "suite/task")]
    assert [there.index(one) for one in ordered_clusters(there, 0, "suite/task")] == places


@pytest.mark.parametrize(("z", "share"), [(0.5, 0.4), (1.5, 0.4), (1.0, 0.8), (-1.0, 0.6)])
def test_the_power_left_is_that_of_paths_whose_effect_the_data_allow(
    z: float, share: float
) -> None:
    draws, random = 400_000, np.random.default_rng(0)
    drift = random.normal(z / np.sqrt(share), 1 / np.sqrt(share), draws)
    rest = random.normal(drift * (1 - share), np.sqrt(1 - share))
    last = z * np.sqrt(share) + rest
    found = power_left(z, share, 0.04)
    assert found == pytest.approx((np.abs(last) > norm.isf(0.04)).mean(), abs=0.003)
