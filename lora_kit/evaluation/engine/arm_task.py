"""One task as an arm answers it, batch by batch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from lora_kit.evaluation.engine import drift
from lora_kit.evaluation.engine.arm import Arm, EvaluationContext
from lora_kit.evaluation.engine.progress import Progress
from lora_kit.evaluation.engine.scoring import Scorer
from lora_kit.evaluation.engine.sharing import batch_cost, drift_cost
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.item import Graded, Item, Outcome, Task
from lora_kit.evaluation.ledger import DRIFT, Entry
from lora_kit.evaluation.requests import Request
from lora_kit.modeling.drift import prompt_drift
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.out_of_memory import free_memory, is_out_of_memory_error

AnswerFunction = Callable[[Sequence[Request]], tuple[list[Outcome], bool]]
"""Function from requests to their outcomes, and true if those were read from a cache."""


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
        answer: function that answers a batch.
        cost: function from the indexes of a batch to its cost in tokens.
        kept_tokens: tokens whose keys and values are kept in memory for the task.
    """

    work: Work
    arm: Arm
    task: Task
    key: str
    pending: frozenset[str]
    answer: AnswerFunction
    cost: Callable[[Sequence[int]], int]
    kept_tokens: int = 0

    @classmethod
    def of(
        cls,
        work: Work,
        arm: Arm,
        context: EvaluationContext,
        answer: AnswerFunction,
        kept_tokens: int = 0,
    ) -> ArmTask:
        """Return the task as one arm answers it, with what is left to evaluate."""
        task, key = work.task_for(arm.name), work.key(arm.name, arm.identity)
        pending = frozenset(item.id for item in context.missing(key, task.items))
        return cls(work, arm, task, key, pending, answer, batch_cost(task), kept_tokens)

    def evaluate(self, batch: Sequence[int], progress: Progress) -> list[tuple[str, Entry]]:
        """Return the entries of a batch's items with their key; none if no item is pending."""
        items = [self.task.items[n] for n in batch]
        if not any(item.id in self.pending for item in items):
            return []
        started = time.monotonic()
        outcomes, is_cached = self.answer([item.request for item in items])
        took = time.monotonic() - started
        seconds = took / len(items)
        tokens = sum(outcome.tokens for outcome in outcomes)
        note = f"{self.task.spec.name}, {self.arm.name}"
        progress.advance(len(items), note, tokens, self.cost(batch), None if is_cached else took)
        return [
            (
                self.key,
                self.work.entry(self.arm.name, item, self._grade(item, outcome), outcome, seconds),
            )
            for item, outcome in zip(items, outcomes, strict=True)
        ]

    def _grade(self, item: Item, outcome: Outcome) -> Graded:
        """Grade an outcome; without an answer, the item has no score, which the verdict counts."""
        if outcome.error:
            return Graded(None, f"[no answer: {outcome.error}]")
        return self.task.grade(item, outcome)


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
            values = prompt_drift(
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
