"""Looks: their sizes and order, and the power that is left."""

import numpy as np
import pytest
from scipy.stats import norm

from lora_kit.statistics.looks import Looks, conditional_power, ordered_clusters


@pytest.mark.parametrize(
    ("clusters", "ends"),
    [
        (1, (1,)),
        (39, (39,)),
        (40, (20, 40)),
        (99, (25, 50, 75, 99)),
        (101, (21, 41, 61, 81, 101)),
        (1000, (200, 400, 600, 800, 1000)),
    ],
)
def test_looks_are_equal_parts_and_none_is_small(clusters: int, ends: tuple[int, ...]) -> None:
    looks = Looks.plan(clusters, 5, 0.05, -4)
    assert looks.ends == ends
    assert len(looks.levels) == len(ends)
    assert list(looks.levels) == sorted(looks.levels)
    assert looks.share(len(ends) - 1) == 1


def test_one_look_is_a_fixed_test() -> None:
    assert Looks.plan(500, 1, 0.05, -4).levels == pytest.approx((0.05,), rel=1e-9)


def test_the_order_is_drawn_from_seed_and_task_and_grows() -> None:
    few, more = [str(n) for n in range(50)], [str(n) for n in range(200)]
    order = ordered_clusters(few * 2, 0, "suite/task")
    assert sorted(order) == sorted(few)
    assert order != tuple(few)
    assert order != ordered_clusters(few, 1, "suite/task")
    assert order != ordered_clusters(few, 0, "suite/other")
    assert order == ordered_clusters(few[::-1], 0, "suite/task")
    assert tuple(one for one in ordered_clusters(more, 0, "suite/task") if one in few) == order


@pytest.mark.parametrize(("z", "share"), [(0.5, 0.4), (1.5, 0.4), (1.0, 0.8), (-1.0, 0.6)])
def test_the_power_left_is_that_of_paths_that_go_on_so(z: float, share: float) -> None:
    draws = 400_000
    drift = z / np.sqrt(share)
    rest = np.random.default_rng(0).normal(drift * (1 - share), np.sqrt(1 - share), draws)
    last = z * np.sqrt(share) + rest
    found = conditional_power(float(norm.sf(z)), share, 0.04)
    assert found == pytest.approx((last > norm.isf(0.04)).mean(), abs=0.003)
