"""Evaluation work: tasks with their batches, planned before anything is computed."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

from lora_kit.backbone.encoder_decoder import is_encoder_decoder
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.backbone.load import Backbone
from lora_kit.backbone.positions import PositionLimits
from lora_kit.backbone.tokenizer import embedding_rows, without_embedding
from lora_kit.data.rows import Row
from lora_kit.evaluation.embedding_tasks import build_embedding_task
from lora_kit.evaluation.engine.batching import items_by_look, plan_batches
from lora_kit.evaluation.engine.outcome_cache import numeric_environment
from lora_kit.evaluation.grading import GRADING_VERSION, grading_code
from lora_kit.evaluation.item import (
    Graded,
    Item,
    Outcome,
    Task,
    prompt_and_answer_length,
)
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.masked_tasks import build_masked_task
from lora_kit.evaluation.reading import read_rows
from lora_kit.evaluation.reward_tasks import build_reward_task
from lora_kit.evaluation.stopping import (
    FIXED,
    LookPlan,
    PlannedTask,
    Stopping,
)
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_items import Shot
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.tasks import as_shot, build_task, task_content
from lora_kit.evaluation.text_tasks import build_text_task
from lora_kit.evaluation.thoughts import NO_THINKING, Thinking
from lora_kit.recipe.objective import HeadObjective
from lora_kit.recipe.sections import FEWSHOT
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError, EvaluationError
from lora_kit.runtime.hashes import json_sha256
from lora_kit.runtime.processes import process_state


@dataclass(frozen=True)
class Work:
    """A task with its batches.

    Attributes:
        suite: suite of the task.
        task: task with its items.
        batches: item indexes of each batch, the same for every arm; those of a look together.
        digest: digest of the task's items.
        variants: the same items with other requests, and their digest, by arm (`fewshot`).
        has_encoder: true for an encoder-decoder backbone.
        batch_looks: number of the look that asks each batch, from 1; empty if there is one look.
    """

    suite: Suite
    task: Task
    batches: tuple[tuple[int, ...], ...]
    digest: str
    variants: Mapping[str, tuple[Task, str]] = field(default_factory=dict)
    has_encoder: bool = False
    batch_looks: tuple[int, ...] = ()

    @property
    def looks(self) -> int:
        """Number of looks at the items."""
        return max(self.batch_looks, default=1)

    def look_of(self, item: str) -> int:
        """Return the number of the look that asks an item, from 1."""
        return self._look_by_item.get(item, 1)

    @cached_property
    def _look_by_item(self) -> Mapping[str, int]:
        asked = zip(self.batches, self.batch_looks, strict=False)
        return {self.task.items[n].id: look for batch, look in asked for n in batch}

    def batches_of(self, looks: range) -> tuple[tuple[int, ...], ...]:
        """Return the batches that some looks ask, counted from 1."""
        if not self.batch_looks:
            return self.batches if 1 in looks else ()
        return tuple(
            batch
            for batch, look in zip(self.batches, self.batch_looks, strict=True)
            if look in looks
        )

    @property
    def name(self) -> str:
        """Name of the suite and the task."""
        return f"{self.suite.name}/{self.task.spec.name}"

    def task_for(self, arm: str) -> Task:
        """Return the task with the requests for an arm."""
        return self.variants[arm][0] if arm in self.variants else self.task

    def entry(
        self, arm: str, item: Item, graded: Graded, outcome: Outcome, seconds: float = 0.0
    ) -> Entry:
        """Return an arm's result on an item as an entry of the ledger.

        Args:
            arm: arm that answered.
            item: item of this work.
            graded: grade of the outcome.
            outcome: result of the requests of the arm.
            seconds: time of the batch divided by its items.
        """
        return Entry(
            arm=arm,
            suite=self.suite.name,
            task=self.task.spec.name,
            item=item.id,
            cluster=item.cluster,
            score=graded.score,
            output=graded.output,
            prompt=item.prompt,
            reference=item.reference,
            tokens=outcome.tokens,
            seconds=seconds,
            slices=item.slices,
            measures=graded.measures,
            log_likelihoods=outcome.log_likelihoods if item.choices else (),
            choices=item.choices,
            answer=item.answer,
            look=self.look_of(item.id),
        )

    def key(self, arm: str, identity: str) -> str:
        """Return a digest of everything that an arm's results on this task depend on."""
        items = self.variants[arm][1] if arm in self.variants else self.digest
        spec = self.task.spec.model_dump(mode="json")
        computation = [numeric_environment(process_state().device), self.batches, self.batch_looks]
        grading = [GRADING_VERSION, grading_code(self.task.spec)]
        return json_sha256([arm, identity, self.suite.name, spec, items, computation, grading])


# Builders of the tasks of a head that is not asked for targets of a text.
BUILDERS: Mapping[HeadObjective, Callable[[Suite, TaskSpec, Any, HeadOutputs], Task]] = {
    "reward": build_reward_task,
    "embedding": build_embedding_task,
    "mlm": build_masked_task,
}


def plan_work(
    suites: Sequence[Suite],
    backbone: Backbone,
    shots: int = 0,
    training: Sequence[Row] = (),
    stopping: Stopping = FIXED,
    thinking: Thinking = NO_THINKING,
) -> list[Work]:
    """Read all items, load all metrics and plan all batches, before anything is computed.

    Args:
        suites: suites to evaluate.
        backbone: backbone, for its tokenizer, head, vocabulary and positions.
        shots: number of examples in the prompts of the `fewshot` arm; 0 without that arm.
        training: training rows that the examples are sampled from; a task's own items if empty.
        stopping: cut of the items into looks.
        thinking: thinking before generated answers.

    Raises:
        LoraKitError: for the first source, item or metric that is invalid.
    """
    return [
        _plan(suite, spec, backbone, shots, training, stopping, thinking)
        for suite in suites
        for spec in suite.tasks
    ]


def look_plan(work: Sequence[Work], stopping: Stopping) -> LookPlan:
    """Return the looks at all tasks of the work, which was planned with `stopping`."""
    sizes = {}
    for one in work:
        looks = [one.look_of(item.id) for item in one.task.items]
        items = tuple(sum(asked <= n for asked in looks) for n in range(1, one.looks + 1))
        sizes[one.name] = PlannedTask(len({item.cluster for item in one.task.items}), items)
    return LookPlan(stopping, sizes)


def suites_of(work: Sequence[Work]) -> list[Suite]:
    """Return the suites of the work, in order and without duplicates."""
    return list({one.suite.name: one.suite for one in work}.values())


def _plan(
    suite: Suite,
    spec: TaskSpec,
    backbone: Backbone,
    shots: int,
    training: Sequence[Row],
    stopping: Stopping,
    thinking: Thinking,
) -> Work:
    if backbone.head is not None:
        build = BUILDERS.get(backbone.head.kind, build_text_task)
        task = build(suite, spec, backbone.tokenizer, backbone.head.outputs)
        return _with_batches(suite, task, backbone, {}, stopping)
    rows = None if spec.kind == "lm_eval" else read_rows(spec)
    task = build_task(spec, backbone.tokenizer, suite.seed, rows=rows, thinking=thinking)
    _require_positions(task, backbone)
    variants: dict[str, tuple[Task, str]] = {}
    if shots and suite.role == "gain":
        fewshot = _with_shots(suite, spec, backbone, shots, training, rows, thinking)
        if fewshot is not None and [i.id for i in fewshot.items] == [i.id for i in task.items]:
            variants[FEWSHOT] = fewshot, json_sha256(task_content(fewshot))
    return _with_batches(suite, task, backbone, variants, stopping)


def _require_positions(task: Task, backbone: Backbone) -> None:
    """Raise EvaluationError for an item without an embedding or a learned position of a token."""
    positions, rows = PositionLimits.of(backbone.model), embedding_rows(backbone.model)
    for item in task.items:
        ids = chain(
            prompt_and_answer_length(item.request)[0],
            *(branch.input_ids for branch in getattr(item.request, "branches", ())),
        )
        if unknown := without_embedding(ids, rows, backbone.tokenizer):
            raise EvaluationError(
                f"{task.spec.name}: item {item.id} {unknown} in {backbone.files.reference}. Fix: "
                "remove the token from the item, or use a backbone that knows it"
            )
        if overflow := positions.overflow(*prompt_and_answer_length(item.request)):
            raise EvaluationError(
                f"{task.spec.name}: item {item.id} {overflow} in {backbone.files.reference}. Fix: "
                "lower the task's shots, max_length or max_new_tokens"
            )


def part_of(work: Work, ids: Collection[str], backbone: Backbone) -> Work:
    """Return work on a subset of a task's items, with new batches and without variants.

    Args:
        work: work on all items; their order is preserved.
        ids: ids of the items to select.
        backbone: backbone, for its vocabulary.
    """
    items = [item for item in work.task.items if item.id in ids]
    return _with_batches(work.suite, replace(work.task, items=items), backbone, {}, FIXED)


def _with_batches(
    suite: Suite,
    task: Task,
    backbone: Backbone,
    variants: Mapping[str, tuple[Task, str]],
    stopping: Stopping,
) -> Work:
    vocabulary = backbone.model.config.get_text_config().vocab_size
    # Batches depend on the task alone, so that adding an arm leaves those of other arms unchanged.
    looks = items_by_look(suite, task, stopping)
    by_look = [plan_batches(task, vocabulary, items) for items in looks]
    batch_looks = [look for look, batches in enumerate(by_look, start=1) for _ in batches]
    return Work(
        suite,
        task,
        tuple(chain.from_iterable(by_look)),
        json_sha256(task_content(task)),
        variants,
        is_encoder_decoder(backbone.model),
        tuple(batch_looks) if len(by_look) > 1 else (),
    )


def _with_shots(
    suite: Suite,
    spec: TaskSpec,
    backbone: Backbone,
    shots: int,
    training: Sequence[Row],
    rows: Sequence[Any] | None,
    thinking: Thinking,
) -> Task | None:
    """Return the task with few-shot examples in each prompt; `None` if there are none to use."""
    skipped = f"{suite.name}/{spec.name}: skipped for the arm {FEWSHOT}"
    try:
        if spec.kind == "lm_eval" or not training:
            if spec.limit is None:
                say(
                    f"{skipped}: without a limit, the examples would be items that are evaluated; "
                    "set the task's limit to leave some out"
                )
                return None
            own = spec.model_copy(update={"shots": shots})
            task = build_task(own, backbone.tokenizer, suite.seed, rows=rows, thinking=thinking)
        else:
            examples = _training_examples(suite, spec, shots, training)
            task = build_task(spec, backbone.tokenizer, suite.seed, examples, rows, thinking)
        _require_positions(task, backbone)
        return task
    except (DataError, EvaluationError) as error:
        say(f"{skipped}: {error}")
        return None


def _training_examples(
    suite: Suite, spec: TaskSpec, shots: int, training: Sequence[Row]
) -> list[Shot]:
    candidates: list[Shot] = [shot for shot in map(as_shot, training) if shot is not None]
    if not candidates:
        raise DataError(
            "data: few-shot examples need prompts with answers (got texts only). Fix: remove "
            f"{FEWSHOT} from evaluation.arms, or train on rows with prompts"
        )
    chosen = random.Random(f"{suite.seed}/{spec.name}/shots").sample(
        range(len(candidates)), min(shots, len(candidates))
    )
    return [candidates[n] for n in chosen]
