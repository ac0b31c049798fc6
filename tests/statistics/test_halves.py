"""Two independent halves of clusters."""

import hashlib
import itertools
import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lora_kit.statistics.halves import fewest_clusters, first_half

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


@given(st.sets(NAMES), st.sets(NAMES))
def test_the_smaller_half_of_a_task_is_counted(clusters: set[str], first: set[str]) -> None:
    inside = len([name for name in clusters if name in first])
    assert fewest_clusters(clusters, first) == min(inside, len(clusters) - inside)
