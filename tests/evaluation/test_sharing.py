"""Batches shared out to processes: each once, evenly, and the same wherever it is worked out."""

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lora_kit.evaluation.engine.arm import Arm, EvaluationContext, LoadedArms
from lora_kit.evaluation.engine.drift import drifters
from lora_kit.evaluation.engine.sharing import shared_out, shares
from lora_kit.evaluation.engine.work import Work, by_length
from lora_kit.evaluation.item import Branch, ChoiceRequest, GenerationRequest, Item, Task
from lora_kit.evaluation.ledger import DRIFT
from lora_kit.evaluation.suite import Suite

BUDGET = 512


def task_work(name: str, lengths: list[int], new_tokens: int = 0) -> Work:
    """A task whose items have prompts of these lengths, in batches as they are laid out."""
    kind = {"kind": "generation", "metric": "chrf"} if new_tokens else {"kind": "multiple_choice"}
    suite = Suite.model_validate(
        {"name": "s", "role": "gain", "tasks": [{"name": name, "source": "x.jsonl", **kind}]}
    )
    items = []
    for number, length in enumerate(lengths):
        prompt = (number, *range(length - 1))
        request = (
            GenerationRequest(prompt, new_tokens)
            if new_tokens
            else ChoiceRequest(prompt, (Branch((1,), 1), Branch((2, 3), 2)))
        )
        items.append(Item(f"{name}-{number}", "c", "", "", request))
    order = sorted(range(len(items)), key=lambda n: -items[n].request.length)
    batches = by_length(order, lambda n: items[n].request.length, BUDGET)
    task: Any = Task(suite.tasks[0], items, lambda item, outcome: None)  # type: ignore[arg-type,return-value]
    return Work(suite, task, batches, name)


def bench(done: dict[str, set[str]] | None = None) -> EvaluationContext:
    return EvaluationContext(None, (), SimpleNamespace(), done or {})  # type: ignore[arg-type]


def arms(drifting: str | None = None) -> LoadedArms:
    of = [Arm(name, name, lambda model: model) for name in ("base", "adapter")]
    return LoadedArms(lambda: None, tuple(of), drifting)


@pytest.fixture
def work() -> list[Work]:
    """A long task, a short one and one of generation."""
    of = random.Random(0)
    return [
        task_work("long", [int(of.lognormvariate(4, 0.7)) + 2 for _ in range(400)]),
        task_work("short", [of.randint(20, 40) for _ in range(30)]),
        task_work("told", [of.randint(40, 300) for _ in range(60)], new_tokens=32),
    ]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_every_batch_is_done_once_and_is_what_one_process_has(
    work: list[Work], processes: int
) -> None:
    found = shares(work, arms("both"), bench(), processes)
    assert found == shares(work, arms("both"), bench(), processes)
    assert len(found) == processes
    for number, one in enumerate(work):
        batches = [batch for process in found for batch in process[number].batches]
        assert sorted(batches) == sorted(one.batches)
        drift = [item for process in found for batch in process[number].drift for item in batch]
        assert sorted(item.id for item in drift) == sorted(item.id for item in drifters(one))
    items = sum(share.items for process in found for share in process)
    assert items == sum(2 * len(one.task.items) + len(drifters(one)) for one in work)


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_no_process_has_much_more_than_another(work: list[Work], processes: int) -> None:
    def load(process: int, batches: list[list[tuple[int, ...]]]) -> int:
        return sum(
            len(batch) * max(one.task.items[n].request.length for n in batch)
            for one, of_task in zip(work, batches, strict=True)
            for batch in of_task
        )

    found = shares(work, arms(), bench(), processes)
    shared = [load(n, [list(share.batches) for share in of]) for n, of in enumerate(found)]
    assert max(shared) <= 4 / 3 * sum(shared) / processes


def test_the_costliest_goes_to_who_has_least() -> None:
    costs = [2, 9, 4, 7, 2, 2]
    owners = shared_out(costs, 2)
    assert owners == [0, 0, 1, 1, 0, 1]
    loads = [sum(c for c, o in zip(costs, owners, strict=True) if o == p) for p in (0, 1)]
    assert loads == [13, 13]
    # Every n-th, each of a task whose longest come first, gives the first one the most.
    assert sum(sorted(costs, reverse=True)[::2]) == 15
    assert shared_out([], 3) == []
    with pytest.raises(ValueError, match="0 processes"):
        shared_out([1], 0)


def test_what_is_done_is_left_out_and_the_rest_shared_out_anew(work: list[Work]) -> None:
    long = work[0]
    keys = [long.key(arm, arm) for arm in ("base", "adapter")]
    gone = {long.task.items[n].id for batch in long.batches[::2] for n in batch}
    half = shares(work, arms(), bench(dict.fromkeys(keys, gone)), 2)
    assert sorted(b for p in half for b in p[0].batches) == sorted(long.batches[1::2])
    # A batch of which one arm lacks one item is there.
    all_but = {item.id for item in long.task.items}
    first = long.task.items[long.batches[0][0]].id
    done = {keys[0]: all_but - {first}, keys[1]: all_but}
    (only,) = shares(work, arms(), bench(done), 1)
    assert (only[0].batches, only[0].items) == (long.batches[:1], 1)
    # Nothing is left, so nobody has a share.
    assert not any(shares(work[:1], arms(), bench(dict.fromkeys(keys, all_but)), 2)[1])


def test_drift_is_left_out_where_it_is_done(work: list[Work]) -> None:
    one = replace(work[1])
    done = {one.key(DRIFT, "both"): {item.id for item in drifters(one)}}
    (share,) = shares([one], arms("both"), bench(done), 1)[0]
    assert share.drift == ()
    assert share.batches == one.batches
