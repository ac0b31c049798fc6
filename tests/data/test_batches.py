import random

import pytest

from lora_kit.data.batches import LengthGroupedSampler, StepShareSampler

LENGTHS = random.Random(0).choices(range(20, 400), k=103)


def batches(sampler: LengthGroupedSampler, size: int) -> list[list[int]]:
    order = list(sampler)
    return [order[i : i + size] for i in range(0, len(order), size)]


def test_each_example_is_sampled_once_with_the_short_batch_last() -> None:
    order = batches(LengthGroupedSampler(LENGTHS, 4, seed=0), 4)
    assert sorted(index for batch in order for index in batch) == list(range(103))
    assert [len(batch) for batch in order[:-1]] == [4] * 25


def test_batches_group_examples_of_similar_length() -> None:
    def padding(order: list[list[int]]) -> int:
        return sum(
            max(LENGTHS[i] for i in batch) * len(batch) - sum(LENGTHS[i] for i in batch)
            for batch in order
        )

    shuffled = list(range(103))
    random.Random(1).shuffle(shuffled)
    random_order = [shuffled[i : i + 4] for i in range(0, 103, 4)]
    assert padding(batches(LengthGroupedSampler(LENGTHS, 4, seed=0), 4)) < padding(random_order) / 5


def test_batches_are_not_sorted_by_length() -> None:
    order = batches(LengthGroupedSampler(LENGTHS, 4, seed=0), 4)[:-1]
    longest = [max(LENGTHS[i] for i in batch) for batch in order]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_order_depends_on_seed_and_epoch() -> None:
    first, same, other = (LengthGroupedSampler(LENGTHS, 4, seed) for seed in (0, 0, 1))
    assert list(first) == list(same)
    assert list(first) != list(other)
    same.set_epoch(1)
    assert list(first) != list(same)


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_a_step_has_the_same_examples_for_any_number_of_processes(processes: int) -> None:
    def shares(process: int, of: int) -> list[list[int]]:
        return list(StepShareSampler(LengthGroupedSampler(LENGTHS, 4, seed=0), 8, process, of))

    alone = shares(0, 1)
    assert len(alone) == len(StepShareSampler(LengthGroupedSampler(LENGTHS, 4, seed=0), 8)) == 13
    assert sorted(index for step in alone for index in step) == list(range(103))
    together = [shares(process, processes) for process in range(processes)]
    for number, step in enumerate(alone):
        dealt = [of_process[number] for of_process in together]
        # Each once, and in shares that differ by one example at most.
        assert sorted(index for share in dealt for index in share) == sorted(step)
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert [len(of_process[-1]) for of_process in together] == [
        len(range(process, 7, processes)) for process in range(processes)
    ]


def test_shares_of_a_step_have_similar_token_counts() -> None:
    dealt = [
        StepShareSampler(LengthGroupedSampler(LENGTHS, 16, seed=0), 16, n, 4) for n in range(4)
    ]
    for shares in list(zip(*dealt, strict=True))[:-1]:
        tokens = [sum(LENGTHS[index] for index in share) for share in shares]
        assert max(tokens) - min(tokens) <= max(LENGTHS)
