"""Planning of the evaluation: all items and batches, before anything is computed."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
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
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.item import Task
from lora_kit.evaluation.masked_tasks import build_masked_task
from lora_kit.evaluation.reading import read_rows
from lora_kit.evaluation.requests import prompt_and_answer_length
from lora_kit.evaluation.reward_tasks import build_reward_task
from lora_kit.evaluation.stopping import (
    FIXED,
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
