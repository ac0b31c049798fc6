"""Statistical power of suites."""

from typing import Any

import pytest

from lora_kit.evaluation.suite import Suite
from lora_kit.preflight.suite_power import TaskPower, compute_suite_power


def power(role: str, **fields: Any) -> TaskPower:
    task = {"name": "t", "kind": "multiple_choice", "source": "general-knowledge", **fields}
    if role == "retention":
        task.setdefault("margin", 0.05)
    suite = Suite.model_validate({"name": "s", "role": role, "tasks": [task]})
    return compute_suite_power([suite])[0].tasks[0]


def test_more_items_show_smaller_margins() -> None:
    few, many = power("retention", limit=100), power("retention", limit=600)
    assert (few.items, many.items) == (100, 600)
    assert few.smallest is not None
    assert many.smallest is not None
    assert many.smallest < 0.05 < few.smallest
    assert few.needed == many.needed
    assert few.needed is not None
    assert 200 < few.needed < 350  # 2.5^2 * 0.1 / 0.05^2 = 250, and what the exact test adds


def test_flips_that_are_expected_count() -> None:
    calm, restless = (power("retention", limit=300, expected_flips=f) for f in (0.05, 0.3))
    assert calm.smallest is not None
    assert restless.smallest is not None
    assert calm.smallest < restless.smallest


def test_an_unrelated_baseline_flips_half_of_the_items() -> None:
    task = {"name": "t", "kind": "multiple_choice", "source": "general-knowledge", "limit": 200}
    suite = Suite.model_validate({"name": "s", "role": "gain", "tasks": [task]})
    related, unrelated = (compute_suite_power([suite], one)[0].tasks[0] for one in (False, True))
    assert related.smallest is not None
    assert unrelated.smallest is not None
    assert unrelated.smallest > 1.5 * related.smallest
    assert unrelated.assumed.startswith("50% of items flip")


def test_items_of_one_cluster_count_for_less() -> None:
    alike = power("retention", source="bias", limit=400)
    alone = power("retention", limit=400)
    assert alike.clusters is not None
    assert alike.clusters <= 72
    assert "clusters" in alike.assumed
    assert alike.smallest is not None
    assert alone.smallest is not None
    assert alike.smallest > alone.smallest


def test_other_scores_need_a_deviation() -> None:
    loss = {"kind": "loss", "source": "python-reference", "limit": 40}
    unknown = power("retention", **loss)
    assert (unknown.items, unknown.smallest, unknown.assumed) == (40, None, "")
    known = power("retention", **loss, expected_deviation=0.06)
    assert known.smallest == pytest.approx(0.03, abs=0.01)


def test_a_gain_is_found_from_some_size_on() -> None:
    gain = power("gain", limit=300, effect=0.05)
    assert gain.smallest is not None
    assert 0.03 < gain.smallest < 0.08
    assert gain.needed is not None
    assert gain.needed > 200
    # A gain of nine points is impossible if one item in twenty flips.
    assert power("gain", limit=300, effect=0.09, expected_flips=0.05).needed is None


def test_items_that_need_a_download_are_not_counted() -> None:
    fetched = power("retention", source="nobody/nothing")
    assert (fetched.items, fetched.smallest) == (None, None)
    limited = power("retention", source="nobody/nothing", limit=200)
    assert limited.items == 200
    assert limited.smallest is not None
