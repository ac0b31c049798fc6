"""Two independent halves."""

import hashlib
import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.engine.work import Work, plan_work
from lora_kit.evaluation.suite import Suite
from lora_kit.rescaling.halves import MIN_CLUSTERS, first_half, halve
from lora_kit.runtime.errors import EvaluationError

NAMES = st.text("abcdefgh/.0123", min_size=1, max_size=6)
ALONE = st.lists(NAMES, min_size=1, max_size=60, unique=True)


def lean(clusters: list[str], first: frozenset[str]) -> int:
    """Items in the first half less those in the second."""
    return sum(1 if cluster in first else -1 for cluster in clusters)


@given(ALONE, st.integers(0, 99))
def test_halves_of_items_that_stand_alone_differ_by_one_at_most_in_any_order(
    names: list[str], seed: int
) -> None:
    first = first_half({"task": names})
    assert first <= set(names)
    assert abs(lean(names, first)) <= 1
    shuffled = random.Random(seed).sample(names, len(names))
    assert first_half({"task": shuffled}) == first


@given(st.lists(NAMES, min_size=1, max_size=80))
def test_clusters_stay_whole_and_halves_differ_by_the_largest_at_most(clusters: list[str]) -> None:
    first = first_half({"task": clusters})
    count = Counter(clusters)
    assert abs(lean(clusters, first)) <= max(count.values())
    assert abs(len(first) - (len(count) - len(first))) <= 1


def test_the_half_that_is_behind_gets_the_larger_of_a_pair() -> None:
    """Gaps of one item, four times; all to the same half, they would add up."""
    clusters = [f"file-{size}" for size in (8, 7, 6, 5, 4, 3, 2, 1) for _ in range(size)]
    assert abs(lean(clusters, first_half({"task": clusters}))) <= 1


@given(ALONE, st.integers(0, 60))
def test_of_two_tasks_on_the_same_files_no_file_is_in_both_halves(
    names: list[str], some: int
) -> None:
    """The one has a part of the other's items; each is halved, and by the same names."""
    fewer = names[: max(some % len(names), 1)]
    first = first_half({"whole": names, "part": fewer})
    assert abs(lean(names, first)) <= 2
    assert abs(lean(fewer, first)) <= 1


def test_halves_follow_no_order_of_names_or_places() -> None:
    """Neighbours often resemble each other; the split is not every second one."""
    names = [f"item-{number:03d}" for number in range(200)]
    first = first_half({"task": names})
    taken = [name in first for name in names]
    assert sum(taken) == 100
    changes = sum(a != b for a, b in itertools.pairwise(taken))
    assert 70 < changes < 130  # of 199; alternating would be 199, the first hundred 1


def test_which_of_a_pair_comes_first_is_not_always_the_same() -> None:
    """Else the lowest hashes would all be in one half."""
    names = [f"item-{number}" for number in range(400)]
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    first = first_half({"task": names})
    leading = sum(name in first for name in ordered[::2])
    assert 70 < leading < 130


def planned(backbone: Backbone, source: str, limit: int) -> list[Work]:
    # One cluster a topic, of several items.
    task = {"name": "prose", "kind": "loss", "source": source, "limit": limit, "max_length": 64}
    return plan_work(
        [Suite.model_validate({"name": "s", "role": "gain", "tasks": [task]})], backbone
    )


def test_work_is_halved_without_an_item_twice_or_lost(tiny_backbone: Backbone) -> None:
    (whole,) = planned(tiny_backbone, "python-reference", 40)
    halves = halve([whole], tiny_backbone)
    (a,), (b,) = halves.a, halves.b
    assert len({item.cluster for item in whole.task.items}) < len(whole.task.items)
    ids = [[item.id for item in part.task.items] for part in (a, b)]
    assert sorted(ids[0] + ids[1]) == sorted(item.id for item in whole.task.items)
    assert not {i.cluster for i in a.task.items} & {i.cluster for i in b.task.items}
    for part in (a, b):
        assert sorted(n for batch in part.batches for n in batch) == list(
            range(len(part.task.items))
        )
    # Results of the one are never taken for the other's, nor for the whole's.
    assert len({one.key("base", "x") for one in (whole, a, b)}) == 3


def test_a_task_of_too_few_clusters_is_refused_with_the_number_needed(
    tiny_backbone: Backbone,
) -> None:
    work = planned(tiny_backbone, "python-reference", 4)
    with pytest.raises(
        EvaluationError, match=rf"s/prose: .*\(got 4 items .* at least {2 * MIN_CLUSTERS},"
    ):
        halve(work, tiny_backbone)
