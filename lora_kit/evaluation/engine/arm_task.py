"""One task as the arms of a loaded model answer it, batch by batch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from lora_kit.evaluation.engine import drift
from lora_kit.evaluation.engine.arm import Arm, EvaluationContext, LoadedArms
from lora_kit.evaluation.engine.layout_cache import RequestKind, read_layout, write_layout
from lora_kit.evaluation.engine.layout_search import find_layout, within_window
from lora_kit.evaluation.engine.outcome_cache import OutcomeCache
from lora_kit.evaluation.engine.prefix import shared_prefix
from lora_kit.evaluation.engine.progress import Progress
from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer, compute_outcomes
from lora_kit.evaluation.engine.sharing import batch_cost, drift_cost
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.item import ChoiceRequest, Graded, Item, Outcome, Request, Task
from lora_kit.evaluation.ledger import DRIFT, Entry
from lora_kit.modeling.adapter_layers import adapter_layers
from lora_kit.modeling.prefix import Prefix, encode_prefix
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.out_of_memory import free_memory, is_out_of_memory_error

# Layouts that were searched once and are used for all models.
LayoutsByKind = dict[RequestKind, BatchLayout]


def prepare_arms(
    work: Work,
    loaded: LoadedArms,
    scorer: Scorer,
    context: EvaluationContext,
    layouts: LayoutsByKind,
) -> list[ArmTask]:
    """Prepare a task for all arms; without encoded prefixes if one does not fit into memory.

    Arms whose prefix fits would otherwise differ from the others in their last digits.
    """
    arms = [arm for arm in loaded.arms if arm.applies_to(work)]
    try:
        return [ArmTask.prepare(work, arm, scorer, context, layouts) for arm in arms]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory_error(error):
            raise
    free_memory()
    say(
        f"{work.name}: the tokens that all items begin with do not fit into memory once; reading "
        "them with each item"
    )
    return [ArmTask.prepare(work, arm, scorer, context, layouts, prefixes=False) for arm in arms]


def evaluate_task(
    work: Work, batches: Sequence[tuple[int, ...]], tasks: Sequence[ArmTask], progress: Progress
) -> Iterable[list[tuple[str, Entry]]]:
    """Yield, batch by batch, the entries of all arms with their keys.

    A batch that does not fit into memory is halved for every arm, since outcomes in batches of
    different sizes differ in their last digits.
    """
    queue = deque(batches)
    while queue:
        batch = queue.popleft()
        items = [work.task.items[n].id for n in batch]
        pending = {item for task in tasks for item in items if item in task.pending}
        batch = tuple(n for n, item in zip(batch, items, strict=True) if item in pending)
        if not batch:
            continue
        try:
            yield [record for task in tasks for record in task.evaluate(batch, progress)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory_error(error):
                raise
            _require_several(work, [work.task.items[n] for n in batch], error)
        else:
            continue
        free_memory()
        middle = len(batch) // 2
        queue.extendleft([batch[middle:], batch[:middle]])


def _require_several(work: Work, items: Sequence[Item], error: Exception) -> None:
    """Announce that a batch is halved, which did not fit into memory.

    Raises:
        EvaluationError: for a batch of one item.
    """
    if len(items) == 1:
        raise EvaluationError(
            f"{work.name}: item {items[0].id} alone does not fit into memory (got "
            f"{items[0].request.length} tokens). Fix: lower the task's max_length, or use a "
            "smaller dtype or quantization"
        ) from error
    say(
        f"{work.name}: a batch of {len(items)} items does not fit into memory; "
        f"retrying with {len(items) // 2}"
    )


@dataclass(frozen=True)
class ArmTask:
    """One task as one arm evaluates it.

    Attributes:
        work: batches of the task.
        task: task with the requests for this arm.
        key: key of the arm's results on the task.
        pending: ids of the items without a result.
        layout: layout of the batches.
        prefix_ids: tokens that all requests begin with.
        prefix: encoded prefix; `None` if the layout does not use one.
        cache: cached outcomes of the arm; `None` if the arm is not cached.
        cost: function from the indexes of a batch to its cost in tokens.
    """

    work: Work
    arm: Arm
    task: Task
    key: str
    pending: frozenset[str]
    scorer: Scorer
    layout: BatchLayout
    prefix_ids: tuple[int, ...]
    prefix: Prefix | None
    cache: OutcomeCache | None
    cost: Callable[[Sequence[int]], int]

    @classmethod
    def prepare(
        cls,
        work: Work,
        arm: Arm,
        scorer: Scorer,
        context: EvaluationContext,
        layouts: LayoutsByKind,
        prefixes: bool = True,
    ) -> ArmTask:
        """Find a layout and, if `prefixes`, encode the shared prefix with the arm active."""
        task, key = work.task_for(arm.name), work.key(arm.name, arm.identity)
        requests = [item.request for item in task.items]
        prefix_ids = shared_prefix(requests)
        longest = max(request.length for request in requests)
        has_choices = isinstance(requests[0], ChoiceRequest)
        kind = RequestKind(has_choices, bool(prefix_ids), longest.bit_length() // 2)
        with arm.active(scorer.model):
            known = layouts.get(kind)
            if known is None and not context.no_cache:
                known = read_layout(scorer, arm.identity, kind)
            if known is None:
                known = find_layout(scorer, requests, prefix_ids)
                write_layout(scorer, arm.identity, kind, known)
            layouts[kind] = known
            layout = within_window(known, scorer, requests)
            layout = replace(layout, prefix=layout.prefix and prefixes)
            prefix = None
            if prefix_ids and layout.prefix:
                prefix = encode_prefix(scorer.model, prefix_ids, scorer.device)
        pending = frozenset(item.id for item in context.missing(key, task.items))
        cache = None
        if arm.cached:
            cache = OutcomeCache.of(arm.identity, scorer.device, context.no_cache)
        cost = batch_cost(task)
        return cls(work, arm, task, key, pending, scorer, layout, prefix_ids, prefix, cache, cost)

    def evaluate(self, batch: Sequence[int], progress: Progress) -> list[tuple[str, Entry]]:
        """Return the entries of a batch's items with their key; none if no item is pending."""
        items = [self.task.items[n] for n in batch]
        if not any(item.id in self.pending for item in items):
            return []
        started = time.monotonic()
        with self.arm.active(self.scorer.model), adapter_layers(self.scorer.model):
            outcomes, is_cached = self._outcomes([item.request for item in items])
        took = time.monotonic() - started
        seconds = took / len(items)
        tokens = sum(outcome.tokens for outcome in outcomes)
        note = f"{self.task.spec.name}, {self.arm.name}"
        progress.advance(len(items), note, tokens, self.cost(batch), None if is_cached else took)
        return [
            (
                self.key,
                self.work.entry(
                    self.arm.name, item, self.task.grade(item, outcome), outcome, seconds
                ),
            )
            for item, outcome in zip(items, outcomes, strict=True)
        ]

    def _outcomes(self, requests: Sequence[Request]) -> tuple[list[Outcome], bool]:
        """Return outcomes, and true if they come from the cache; else they are written to it."""
        if self.cache is None:
            return compute_outcomes(self.scorer, requests, self.layout, self.prefix), False
        path = self.cache.path(requests, self.prefix_ids, self.layout)
        outcomes = self.cache.read(path)
        if outcomes is not None:
            return outcomes, True
        outcomes = compute_outcomes(self.scorer, requests, self.layout, self.prefix)
        self.cache.write(path, outcomes)
        return outcomes, False


def measure_drift(
    work: Work,
    batches: Sequence[tuple[Item, ...]],
    key: str,
    scorer: Scorer,
    context: EvaluationContext,
    progress: Progress,
) -> Iterable[list[tuple[str, Entry]]]:
    """Yield, batch by batch, the drift of each prompt as entries with their key.

    A batch that does not fit into memory is halved.
    """
    queue = deque(batches)
    while queue:
        batch = queue.popleft()
        pending = context.missing(key, batch)
        if not pending:
            continue
        prompts = [drift.drift_prompt(work, item) for item in batch]
        started = time.monotonic()
        try:
            values = drift.prompt_drift(
                scorer.model, prompts, scorer.tokenizer.pad_token_id, scorer.device
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory_error(error):
                raise
            _require_several(work, batch, error)
            values = []
        if not values:
            free_memory()
            middle = len(batch) // 2
            queue.extendleft([batch[middle:], batch[:middle]])
            continue
        took = time.monotonic() - started
        seconds = took / len(batch)
        tokens = 2 * sum(map(len, prompts))
        note = f"{work.task.spec.name}, {DRIFT}"
        progress.advance(len(pending), note, tokens, drift_cost(work, batch), took)
        yield [
            (key, _drift_entry(work, item, value, 2 * len(prompt), seconds))
            for item, value, prompt in zip(batch, values, prompts, strict=True)
            if item in pending
        ]


def _drift_entry(work: Work, item: Item, value: float, tokens: int, seconds: float) -> Entry:
    # Drift is of the prompt: there is no answer to show.
    asked = replace(item, reference="", choices=(), answer=None)
    return work.entry(DRIFT, asked, Graded(value, ""), Outcome(tokens=tokens), seconds)
