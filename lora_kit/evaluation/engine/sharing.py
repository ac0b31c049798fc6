"""Which process does what of a model: batches shared out by their cost, the costliest first.

Every process works it out alone and all come to the same: from the batches, which do not depend on
the number of processes, and from what is done, which all have read before any of them writes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lora_kit.evaluation.engine import drift
from lora_kit.evaluation.engine.arm import EvaluationContext, LoadedArms
from lora_kit.evaluation.engine.prefix import shared_prefix
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.item import GenerationRequest, Item, Request, Task
from lora_kit.evaluation.ledger import DRIFT

# A generated token takes a step of its own, one that is read shares its step with a whole batch.
# Rough: it only has to keep the costliest batches apart.
GENERATED = 4


@dataclass(frozen=True)
class Share:
    """What is to be done of a task, by one process or by all.

    Attributes:
        batches: indexes of the items, in the order of the task's batches.
        drift: batches of the items whose prompts drift is measured on.
        items: that are not done, counted once for each arm.
    """

    batches: tuple[tuple[int, ...], ...]
    drift: tuple[tuple[Item, ...], ...]
    items: int

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.items)


@dataclass(frozen=True)
class _Piece:
    """A batch that is not done; of one process, whole.

    Attributes:
        work: index of its task.
        cost: tokens, padding included, over all arms that lack items of it.
        items: that are not done, counted once for each arm.
    """

    work: int
    cost: int
    items: int
    batch: tuple[int, ...] = ()
    drift: tuple[Item, ...] = ()


def shares(
    work: Sequence[Work], loaded: LoadedArms, bench: EvaluationContext, processes: int
) -> list[list[Share]]:
    """For each process, what it does of each task for one model.

    Raises:
        ValueError: if there are no processes.
    """
    pieces = [
        piece
        for number, one in enumerate(work)
        for piece in _pieces(number, one, loaded, bench)
        if piece.items
    ]
    owners = shared_out([piece.cost for piece in pieces], processes)
    found: list[list[list[_Piece]]] = [[[] for _ in work] for _ in range(processes)]
    for piece, owner in zip(pieces, owners, strict=True):
        found[owner][piece.work].append(piece)
    return [[_share(part) for part in of_process] for of_process in found]


def shared_out(costs: Sequence[int], processes: int) -> list[int]:
    """For each piece the process that does it: the costliest first, each to who has least so far.

    The load of no process is more than 4/3 - 1/(3n) of the best possible (Graham 1969, SIAM Journal
    on Applied Mathematics 17:416, theorem 2).

    Raises:
        ValueError: if there are no processes.
    """
    if processes < 1:
        raise ValueError(f"{processes} processes to share out to")
    owners = [0] * len(costs)
    loads = [(0, process) for process in range(processes)]
    for number in sorted(range(len(costs)), key=lambda n: (-costs[n], n)):
        load, process = loads[0]
        owners[number] = process
        heapq.heapreplace(loads, (load + costs[number], process))
    return owners


def _share(pieces: Sequence[_Piece]) -> Share:
    return Share(
        tuple(piece.batch for piece in pieces if piece.batch),
        tuple(piece.drift for piece in pieces if piece.drift),
        sum(piece.items for piece in pieces),
    )


def _pieces(number: int, work: Work, loaded: LoadedArms, bench: EvaluationContext) -> list[_Piece]:
    """All batches of a task, done or not."""
    asked = [
        (_cost_of(work.asked(arm.name)), _left(bench, work.key(arm.name, arm.identity), work.task))
        for arm in loaded.arms
        if arm.wants(work)
    ]
    found = []
    for batch in work.batches:
        # All arms that lack an item of the batch are asked all that any of them lacks.
        rows = [n for n in batch if any(n in left for _, left in asked)]
        costs = [
            len(rows) * max(cost(n) for n in rows)
            for cost, left in asked
            if not left.isdisjoint(batch)
        ]
        items = sum(len(left.intersection(batch)) for _, left in asked)
        found.append(_Piece(number, sum(costs), items, batch=batch))
    if loaded.drifting:
        key = work.key(DRIFT, loaded.drifting)
        for drifters in drift.batches(work):
            longest = max(len(drift.prompt_ids(work, item)) for item in drifters)
            left = len(bench.missing(key, drifters))
            found.append(_Piece(number, 2 * len(drifters) * longest, left, drift=drifters))
    return found


def _left(bench: EvaluationContext, key: str, task: Task) -> frozenset[int]:
    """Indexes of the items that are not done."""
    missing = {item.id for item in bench.missing(key, task.items)}
    return frozenset(n for n, item in enumerate(task.items) if item.id in missing)


def _cost_of(task: Task) -> Callable[[int], int]:
    """From an item's index to its cost in tokens; what all items share is encoded once."""
    skipped = len(shared_prefix([item.request for item in task.items]))
    return lambda n: max(_cost(task.items[n].request) - skipped, 1)


def _cost(request: Request) -> int:
    if isinstance(request, GenerationRequest):
        return len(request.prompt_ids) + GENERATED * request.max_new_tokens
    return request.length
