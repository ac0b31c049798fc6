"""Distribution of batches over processes, by cost.

Every process computes the same distribution on its own, from two inputs that all processes share:
the batches, which do not depend on the number of processes, and the finished items, which all
processes read before any of them writes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lora_kit.evaluation.engine import drift
from lora_kit.evaluation.engine.arm import EvaluationContext, LoadedArms
from lora_kit.evaluation.engine.prefix import shared_prefix
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.item import Item, Task
from lora_kit.evaluation.ledger import DRIFT
from lora_kit.evaluation.requests import GenerationRequest, Request

# Cost of a generated token, in prompt tokens: each generated token takes a forward pass of its own,
# while prompt tokens share one. A rough value is enough to separate the costliest batches.
GENERATED_TOKEN_COST = 4


@dataclass(frozen=True)
class WorkShare:
    """Share of a task that one process evaluates.

    Attributes:
        batches: item indexes of each batch, in the order of the task's batches.
        drift: batches of the items whose prompts drift is measured on.
        items: number of items without a result, counted once per arm.
        cost: cost of the batches, in tokens, over all arms.
    """

    batches: tuple[tuple[int, ...], ...]
    drift: tuple[tuple[Item, ...], ...]
    items: int
    cost: int

    def __bool__(self) -> bool:
        """Return true if any item is left to evaluate."""
        return bool(self.items)


@dataclass(frozen=True)
class _PendingBatch:
    """A batch with its cost, the unit of distribution.

    Attributes:
        work: index of the task.
        cost: tokens, padding included, over all arms that lack results of the batch.
        items: number of items without a result, counted once per arm.
        batch: item indexes; empty for a batch of drift prompts.
        drift: items of a batch of drift prompts.
    """

    work: int
    cost: int
    items: int
    batch: tuple[int, ...] = ()
    drift: tuple[Item, ...] = ()


def work_shares(
    work: Sequence[Work],
    loaded: LoadedArms,
    context: EvaluationContext,
    processes: int,
    asked: Sequence[range] = (),
) -> list[list[WorkShare]]:
    """Return, for each process and task, the share of one model's batches to evaluate.

    Args:
        work: all tasks.
        loaded: arms of the model.
        context: settings and finished results.
        processes: number of processes.
        asked: looks at each task whose items are asked, from 1; by default all.

    Raises:
        ValueError: if there are no processes.
    """
    pending = [
        batch
        for number, (one, looks) in enumerate(zip(work, asked or all_looks(work), strict=True))
        if looks
        for batch in _batches_with_costs(number, one, loaded, context, looks)
        if batch.items
    ]
    owners = assign_to_processes([batch.cost for batch in pending], processes)
    assigned: list[list[list[_PendingBatch]]] = [[[] for _ in work] for _ in range(processes)]
    for batch, owner in zip(pending, owners, strict=True):
        assigned[owner][batch.work].append(batch)
    return [
        [
            WorkShare(
                batches=tuple(one.batch for one in own if one.batch),
                drift=tuple(one.drift for one in own if one.drift),
                items=sum(one.items for one in own),
                cost=sum(one.cost for one in own),
            )
            for own in by_task
        ]
        for by_task in assigned
    ]


def all_looks(work: Sequence[Work]) -> list[range]:
    """Return all looks at each task."""
    return [range(1, one.looks + 1) for one in work]


def assign_to_processes(costs: Sequence[int], processes: int) -> list[int]:
    """Assign pieces of work to processes, costliest first, each to the least loaded process.

    The largest load is at most 4/3 - 1/(3n) times the optimum for n processes (Graham 1969, SIAM
    Journal on Applied Mathematics 17:416, theorem 2).

    Returns:
        Index of the process for each cost.

    Raises:
        ValueError: if there are no processes.
    """
    if processes < 1:
        raise ValueError(f"processes: must be at least 1 (got {processes})")
    owners = [0] * len(costs)
    loads = [(0, process) for process in range(processes)]
    for number in sorted(range(len(costs)), key=lambda n: (-costs[n], n)):
        load, process = loads[0]
        owners[number] = process
        heapq.heapreplace(loads, (load + costs[number], process))
    return owners


def _batches_with_costs(
    number: int, work: Work, loaded: LoadedArms, context: EvaluationContext, looks: range
) -> list[_PendingBatch]:
    """Return all batches of some looks at a task, including finished ones, with their costs."""
    arms = [
        (
            batch_cost(work.task_for(arm.name)),
            _pending_items(context, work.key(arm.name, arm.identity), work.task),
        )
        for arm in loaded.arms
        if arm.applies_to(work)
    ]
    batches = []
    for batch in work.batches_of(looks):
        # Every arm that lacks an item of the batch evaluates all items that any arm lacks.
        rows = [n for n in batch if any(n in pending for _, pending in arms)]
        costs = [cost(rows) for cost, pending in arms if not pending.isdisjoint(batch)]
        items = sum(len(pending.intersection(batch)) for _, pending in arms)
        batches.append(_PendingBatch(number, sum(costs), items, batch=batch))
    if loaded.drift_identity and 1 in looks:
        key = work.key(DRIFT, loaded.drift_identity)
        for items_of_drift in drift.drift_batches(work):
            cost = drift_cost(work, items_of_drift)
            items = len(context.missing(key, items_of_drift))
            batches.append(_PendingBatch(number, cost, items, drift=items_of_drift))
    return batches


def _pending_items(context: EvaluationContext, key: str, task: Task) -> frozenset[int]:
    """Return indexes of the items without a result."""
    missing = {item.id for item in context.missing(key, task.items)}
    return frozenset(n for n, item in enumerate(task.items) if item.id in missing)


def batch_cost(task: Task) -> Callable[[Sequence[int]], int]:
    """Return a function from a batch's item indexes to its cost in tokens, padding included.

    The shared prefix costs nothing.
    """
    skipped = len(shared_prefix([item.request for item in task.items]))

    def cost(batch: Sequence[int]) -> int:
        return len(batch) * max(max(_cost(task.items[n].request) - skipped, 1) for n in batch)

    return cost


def drift_cost(work: Work, items: Sequence[Item]) -> int:
    """Return the cost of a batch of drift prompts, in tokens.

    Each prompt is read twice, with the adapter enabled and disabled.
    """
    return 2 * len(items) * max(len(drift.drift_prompt(work, item)) for item in items)


def _cost(request: Request) -> int:
    if isinstance(request, GenerationRequest):
        return len(request.prompt_ids) + GENERATED_TOKEN_COST * request.max_new_tokens
    return request.length
