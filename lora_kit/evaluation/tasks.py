"""Tasks with their items: rows selected and tokenized once, the same for every arm."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lora_kit.backbone.encoder_decoder import is_seq2seq_tokenizer
from lora_kit.data.files.tables import is_hub_id
from lora_kit.data.rows import Message, Row
from lora_kit.data.templates import refuse_unsupported_tools
from lora_kit.data.unwritten import UnwrittenParts
from lora_kit.evaluation.cut_answers import grade_with_cuts
from lora_kit.evaluation.grading import task_grader
from lora_kit.evaluation.item import Item, Task
from lora_kit.evaluation.questions import Question
from lora_kit.evaluation.reading import Conversation, read_rows
from lora_kit.evaluation.samples import grade_samples, sampled, sampling_of
from lora_kit.evaluation.scores import OF_HEADS
from lora_kit.evaluation.target_rows import OBJECTIVES
from lora_kit.evaluation.task_items import (
    Shot,
    choice_item,
    fill_template,
    generation_item,
    instruction_item,
    loss_item,
)
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.thoughts import NO_THINKING, Thinking, grade_behind_thoughts
from lora_kit.runtime.errors import DataError, EvaluationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_task(
    spec: TaskSpec,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    shots: Sequence[Shot] = (),
    rows: Sequence[Any] | None = None,
    thinking: Thinking = NO_THINKING,
) -> Task:
    """Read, select and tokenize a task's items.

    Args:
        spec: task.
        tokenizer: tokenizer of the backbone.
        seed: seed of the selection of items and of the task's own shots.
        shots: solved examples before each item, in place of the task's own.
        rows: rows of the task's source; by default they are read.
        thinking: thinking before generated answers.

    Raises:
        DataError: if the source does not fit the kind, or an item is invalid.
        EvaluationError: if the metric of the task cannot be loaded, or only a head answers it.
    """
    if spec.kind == "lm_eval":
        if is_seq2seq_tokenizer(tokenizer):
            raise EvaluationError(
                f"task {spec.name}: kind: lm_eval requests are texts to continue, which an "
                "encoder-decoder backbone does not support (got kind lm_eval). Fix: use another "
                "kind"
            )
        from lora_kit.evaluation.lm_eval.tasks import build_lm_eval

        return build_lm_eval(spec, tokenizer, seed, spec.shots)
    if spec.kind in OF_HEADS:
        raise EvaluationError(
            f"task {spec.name}: kind: only a head answers items of kind {spec.kind}, and a "
            "language model has none (got a language model). Fix: train one with "
            f"training.objective: {OBJECTIVES[spec.kind]}, or use another suite"
        )
    builders: dict[str, Callable[..., Item]] = {
        "loss": loss_item,
        "generation": partial(generation_item, thinking=thinking),
        "multiple_choice": choice_item,
        "classification": choice_item,
        "instructions": partial(instruction_item, thinking=thinking),
        "judge": partial(generation_item, thinking=thinking),
    }
    selected, rest = select_rows(spec, seed, rows)
    own = [_own_shot(row, spec) for row in rest[: spec.shots]]
    unwritten = _unwritten_fields(selected, spec, tokenizer)
    build = builders[spec.kind]
    items = [build(row, list(shots) or own, spec, tokenizer) for row in selected]
    unused = Counter(name for row in selected for name in row.unused) + unwritten
    grade = task_grader(spec)
    if spec.kind in ("generation", "instructions", "judge"):
        grade = grade_with_cuts(grade, first_line=spec.scored_text == "first_line")
        if thinking.tokens:
            grade = grade_behind_thoughts(grade)
    if (sampling := sampling_of(spec, seed)) is not None:
        items = [sampled(item, sampling) for item in items]
        grade = grade_samples(grade)
    return Task(spec, items, grade, unused)


def _unwritten_fields(
    rows: Sequence[Any], spec: TaskSpec, tokenizer: PreTrainedTokenizerBase
) -> Counter[str]:
    """Count fields of turns that the chat template does not write.

    Raises:
        DataError: if it is a text, reasoning, or tools.
    """
    parts, found = UnwrittenParts(tokenizer), Counter[str]()
    for row in rows:
        if isinstance(row, Conversation):
            # The answer is not rendered where one is generated.
            is_generated = spec.kind in ("generation", "judge")
            messages = row.row.prompt_turns if is_generated else row.row.messages
            prompt = dataclasses.replace(row.row, messages=messages)
            if tokenizer.chat_template:
                refuse_unsupported_tools(prompt, tokenizer)
            found.update(parts.fields(prompt))
    return found


def selected_clusters(spec: TaskSpec, seed: int) -> list[str] | None:
    """Return the clusters of the items that a task evaluates; needs no tokenizer.

    `None` for a source that would have to be downloaded.

    Raises:
        DataError: if the source is invalid.
    """
    if spec.kind == "lm_eval" or is_hub_id(spec.source):
        return None
    return [row.cluster for row in select_rows(spec, seed)[0]]


def select_rows(
    spec: TaskSpec, seed: int, rows: Sequence[Any] | None = None
) -> tuple[list[Any], list[Any]]:
    """Return the rows to evaluate, in source order, and rows for shots, in random order.

    Args:
        spec: task.
        seed: seed of the selection.
        rows: rows of the task's source; by default they are read.

    Raises:
        DataError: if the source does not fit the kind, or has too few rows for the shots.
    """
    rows = read_rows(spec) if rows is None else rows
    limit = min(spec.limit or len(rows), len(rows) - spec.shots)
    if limit < 1:
        raise DataError(
            f"task {spec.name}: shots: no items are left to evaluate (got {spec.shots} shots of "
            f"{len(rows)} items in {spec.source}). Fix: lower `shots`"
        )
    order = random.Random(f"{seed}/{spec.name}").sample(range(len(rows)), len(rows))
    selected = [rows[n] for n in sorted(order[:limit])]
    # A shot from the cluster of an item could give its answer away.
    clusters = {row.cluster for row in selected}
    rest = [rows[n] for n in order[limit:] if rows[n].cluster not in clusters]
    if spec.shots:
        # So could one that asks the same, since a row without an id is a cluster of its own.
        asked = {_question_text(row, spec) for row in selected}
        rest = [row for row in rest if _question_text(row, spec) not in asked]
    if len(rest) < spec.shots:
        raise DataError(
            f"task {spec.name}: shots: {spec.shots} items of clusters that are not evaluated, "
            f"with other prompts, are needed (got {len(rest)} in {spec.source}). Fix: lower "
            "`limit` or `shots`"
        )
    return selected, rest


def _question_text(row: Any, spec: TaskSpec) -> str:
    """Return the prompt of a row, with each run of white space as one space."""
    if isinstance(row, Question):
        text = fill_template(row, spec)
    elif isinstance(row, Conversation):
        text = row.row.text or "\n".join(m.content for m in row.row.prompt_turns)
    else:
        text = row.row.prompt
    return " ".join(text.split())


def _own_shot(row: Any, spec: TaskSpec) -> Shot:
    if isinstance(row, Question):
        return (
            Message("user", fill_template(row, spec)),
            Message("assistant", row.choices[row.answer]),
        )
    if isinstance(row, Conversation) and row.row.has_answer:
        return row.row.messages
    raise DataError(
        f"task {spec.name}: shots: the rows of {spec.source} have no answers to show (got "
        f"{spec.shots} shots). Fix: remove `shots`"
    )


def as_shot(row: Row) -> Shot | None:
    """Return a training row as a solved example; `None` without a prompt and an answer."""
    return row.messages if row.has_answer else None


def task_content(task: Task) -> list[Mapping[str, Any]]:
    """Return everything of a task's items that results depend on, as JSON values."""
    return [
        {
            "id": item.id,
            "request": dataclasses.asdict(item.request),
            "answer": item.answer,
            "choices": item.choices,
            "references": item.references,
            "checks": [dataclasses.asdict(check) for check in item.checks],
            "cluster": item.cluster,
            "slices": dict(item.slices),
            **({"targets": dict(item.targets)} if item.targets else {}),
            **({"tags": item.tags} if item.tags else {}),
        }
        for item in task.items
    ] + ([] if task.corpus is None else [dataclasses.asdict(task.corpus)])
