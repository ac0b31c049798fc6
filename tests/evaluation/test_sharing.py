"""Distribution of batches over processes: each batch once, evenly, the same in every process."""

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lora_kit.evaluation.engine.arm import Arm, EvaluationContext, LoadedArms
from lora_kit.evaluation.engine.batching import batches_by_length
from lora_kit.evaluation.engine.drift import drift_batches, drift_items
from lora_kit.evaluation.engine.sharing import (
    assign_to_processes,
    batch_cost,
    drift_cost,
    work_shares,
)
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.item import Item, Task
from lora_kit.evaluation.ledger import DRIFT
from lora_kit.evaluation.requests import Branch, ChoiceRequest, GenerationRequest
from lora_kit.evaluation.suite import Suite

BUDGET = 512


def task_work(name: str, lengths: list[int], new_tokens: int = 0) -> Work:
    """Return work on a task whose items have prompts of these lengths."""
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
    batches = batches_by_length(order, lambda n: items[n].request.length, BUDGET)
    task: Any = Task(suite.tasks[0], items, lambda item, outcome: None)  # type: ignore[arg-type,return-value]
    return Work(suite, task, batches, name)


def context(done: dict[str, set[str]] | None = None) -> EvaluationContext:
    return EvaluationContext(None, (), SimpleNamespace(), done or {})  # type: ignore[arg-type]


def arms(drift_identity: str | None = None) -> LoadedArms:
    of = [Arm(name, name, lambda model: model) for name in ("base", "adapter")]
    return LoadedArms(lambda: None, tuple(of), drift_identity)


@pytest.fixture
def work() -> list[Work]:
    """Return a long task, a short task and a generation task."""
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
    found = work_shares(work, arms("both"), context(), processes)
    assert found == work_shares(work, arms("both"), context(), processes)
    assert len(found) == processes
    for number, one in enumerate(work):
        batches = [batch for process in found for batch in process[number].batches]
        assert sorted(batches) == sorted(one.batches)
        drift = [item for process in found for batch in process[number].drift for item in batch]
        assert sorted(item.id for item in drift) == sorted(item.id for item in drift_items(one))
    items = sum(share.items for process in found for share in process)
    assert items == sum(2 * len(one.task.items) + len(drift_items(one)) for one in work)


@pytest.mark.parametrize("processes", [1, 3])
def test_the_costs_of_the_shares_are_those_of_the_batches_as_they_are_done(
    work: list[Work], processes: int
) -> None:
    found = work_shares(work, arms("both"), context(), processes)
    for number, one in enumerate(work):
        cost = batch_cost(one.task)
        done = 2 * sum(cost(batch) for batch in one.batches)
        done += sum(drift_cost(one, batch) for batch in drift_batches(one))
        assert sum(process[number].cost for process in found) == done


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_no_process_has_much_more_than_another(work: list[Work], processes: int) -> None:
    def load(process: int, batches: list[list[tuple[int, ...]]]) -> int:
        return sum(
            len(batch) * max(one.task.items[n].request.length for n in batch)
            for one, of_task in zip(work, batches, strict=True)
            for batch in of_task
        )

    found = work_shares(work, arms(), context(), processes)
    shared = [load(n, [list(share.batches) for share in of]) for n, of in enumerate(found)]
    assert max(shared) <= 4 / 3 * sum(shared) / processes


def test_the_costliest_goes_to_who_has_least() -> None:
    costs = [2, 9, 4, 7, 2, 2]
    owners = assign_to_processes(costs, 2)
    assert owners == [0, 0, 1, 1, 0, 1]
    loads = [sum(c for c, o in zip(costs, owners, strict=True) if o == p) for p in (0, 1)]
    assert loads == [13, 13]
    # Round robin over costs in descending order would give the first process more.
    assert sum(sorted(costs, reverse=True)[::2]) == 15
    assert assign_to_processes([], 3) == []
    with pytest.raises(ValueError, match=r"processes: must be at least 1 \(got 0\)"):
        assign_to_processes([1], 0)


def test_what_is_done_is_left_out_and_the_rest_shared_out_anew(work: list[Work]) -> None:
    long = work[0]
    keys = [long.key(arm, arm) for arm in ("base", "adapter")]
    gone = {long.task.items[n].id for batch in long.batches[::2] for n in batch}
    half = work_shares(work, arms(), context(dict.fromkeys(keys, gone)), 2)
    assert sorted(b for p in half for b in p[0].batches) == sorted(long.batches[1::2])
    # A batch is assigned if one arm lacks one of its items.
    all_but = {item.id for item in long.task.items}
    first = long.task.items[long.batches[0][0]].id
    done = {keys[0]: all_but - {first}, keys[1]: all_but}
    (only,) = work_shares(work, arms(), context(done), 1)
    assert (only[0].batches, only[0].items) == (long.batches[:1], 1)
    # No process has a share if all items are done.
    assert not any(work_shares(work[:1], arms(), context(dict.fromkeys(keys, all_but)), 2)[1])


def test_drift_is_left_out_where_it_is_done(work: list[Work]) -> None:
    one = replace(work[1])
    done = {one.key(DRIFT, "both"): {item.id for item in drift_items(one)}}
    (share,) = work_shares([one], arms("both"), context(done), 1)[0]
    assert share.drift == ()
    assert share.batches == one.batches
