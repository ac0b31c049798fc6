"""Rows to items: chosen, prompted and tokenized once, the same for every arm."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from lora_kit.backbone.encoder_decoder import writes_pairs
from lora_kit.data.files.tables import is_hub_id
from lora_kit.data.rows import Message, Row
from lora_kit.data.templates import control_tokens, refuse_control_tokens
from lora_kit.data.tokenization import IGNORED, Example, tokenize, tokenize_prompt
from lora_kit.evaluation.grading import grader
from lora_kit.evaluation.item import (
    Branch,
    ChoiceRequest,
    GenerationRequest,
    Item,
    LossRequest,
    Task,
)
from lora_kit.evaluation.reading import (
    Conversation,
    Instruction,
    Question,
    read_instructions,
    read_labelled,
    read_questions,
    read_talks,
)
from lora_kit.evaluation.suite import FIELD, QUESTION, TEXT, TaskSpec
from lora_kit.runtime.errors import DataError, EvaluationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

R = TypeVar("R", Question, Conversation, Instruction)

# A solved example: turns that come before the item's own.
Shot = tuple[Message, ...]


def build_task(
    spec: TaskSpec,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    shots: Sequence[Shot] = (),
) -> Task:
    """Read, choose and tokenize a task's items.

    Args:
        spec: the task.
        tokenizer: of the backbone.
        seed: picks items where there is a limit, and the task's own shots.
        shots: put before each item, in place of the task's own.

    Raises:
        DataError: if the source does not fit the kind, or an item is wrong.
        EvaluationError: if its metric cannot be loaded.
    """
    if spec.kind == "lm_eval":
        if writes_pairs(tokenizer):
            raise EvaluationError(
                f"task {spec.name}: kind lm_eval: its requests are texts to be continued, and this "
                "backbone is an encoder with a decoder; possible: tasks of the other kinds"
            )
        from lora_kit.evaluation.lm_eval.tasks import build_lm_eval

        return build_lm_eval(spec, tokenizer, seed, spec.shots)
    makers: dict[str, Callable[..., Item]] = {
        "loss": _loss_item,
        "generation": _generation_item,
        "multiple_choice": _choice_item,
        "classification": _choice_item,
        "instructions": _instruction_item,
    }
    rows, rest = chosen_rows(spec, seed)
    own = [_solved(row, spec) for row in rest[: spec.shots]]
    make = makers[spec.kind]
    items = [make(row, list(shots) or own, spec, tokenizer) for row in rows]
    return Task(spec, items, grader(spec))


def chosen_clusters(spec: TaskSpec, seed: int) -> list[str] | None:
    """The clusters of the items that a task evaluates, without a tokenizer.

    `None` where its rows would have to be fetched.

    Raises:
        DataError: if the source is wrong.
    """
    if spec.kind == "lm_eval" or is_hub_id(spec.source):
        return None
    return [row.cluster for row in chosen_rows(spec, seed)[0]]


def chosen_rows(spec: TaskSpec, seed: int) -> tuple[list[Any], list[Any]]:
    """The rows that are evaluated, in their order, and the others, in a random one.

    Raises:
        DataError: if the source does not fit the kind, or has too few rows for the shots.
    """
    return _chosen(_rows(spec), spec, seed)


def _rows(spec: TaskSpec) -> list[Any]:
    readers: dict[str, Callable[[TaskSpec], list[Any]]] = {
        "loss": read_talks,
        "generation": read_talks,
        "multiple_choice": read_questions,
        "classification": read_labelled,
        "instructions": read_instructions,
    }
    rows = readers[spec.kind](spec)
    if not rows:
        raise DataError(f"task {spec.name}: {spec.source} has no items in split {spec.split}")
    _refuse_twins(rows, spec)
    return rows


def _refuse_twins(rows: Sequence[Any], spec: TaskSpec) -> None:
    twice, count = Counter(row.id for row in rows).most_common(1)[0]
    if count > 1:
        raise DataError(f"task {spec.name}: {count} items of {spec.source} have the id {twice!r}")


def _chosen(rows: list[R], spec: TaskSpec, seed: int) -> tuple[list[R], list[R]]:
    """The rows that are evaluated, in their order, and the others, in a random one."""
    limit = min(spec.limit or len(rows), len(rows) - spec.shots)
    if limit < 1:
        raise DataError(
            f"task {spec.name}: {spec.source} has {len(rows)} items, and {spec.shots} of them are "
            "shots; lower `shots`"
        )
    order = random.Random(f"{seed}/{spec.name}").sample(range(len(rows)), len(rows))
    chosen = [rows[n] for n in sorted(order[:limit])]
    # A shot of an item's own cluster could give its answer away.
    clusters = {row.cluster for row in chosen}
    rest = [rows[n] for n in order[limit:] if rows[n].cluster not in clusters]
    if len(rest) < spec.shots:
        raise DataError(
            f"task {spec.name}: {len(rest)} items of {spec.source} are of clusters that are not "
            f"evaluated, {spec.shots} are wanted as shots; lower `limit` or `shots`"
        )
    return chosen, rest


def _solved(row: Any, spec: TaskSpec) -> Shot:
    if isinstance(row, Question):
        return (
            Message("user", filled(row, spec)),
            Message("assistant", row.choices[row.answer]),
        )
    if isinstance(row, Conversation) and row.row.messages:
        return row.row.messages
    raise DataError(f"task {spec.name}: {spec.source} has no answers to show; leave `shots` out")


def shot_of(row: Row) -> Shot | None:
    """A training row as a solved example; `None` for one without a prompt and its answer."""
    return row.messages if row.answered else None


def _loss_item(
    talk: Conversation, shots: Sequence[Shot], spec: TaskSpec, tokenizer: PreTrainedTokenizerBase
) -> Item:
    row = talk.row
    if shots and row.text is not None:
        raise DataError(f"{talk.id}: a text alone takes no shots; leave `shots` out")
    example = tokenize(row, tokenizer, spec.max_length)
    if shots:
        example = _behind_shots(example, talk, shots, tokenizer)
    if not example.supervised:
        raise DataError(
            f"{talk.id}: nothing to score within max_length {spec.max_length} of task "
            f"{spec.name}; raise it"
        )
    scored = [label for label in example.labels if label != IGNORED]
    return Item(
        id=talk.id,
        cluster=talk.cluster,
        prompt=_shown(talk.row),
        reference=talk.references[0],
        request=LossRequest(example),
        slices=talk.slices,
        references=talk.references,
        scored_bytes=len(str(tokenizer.decode(scored, skip_special_tokens=True)).encode()),
    )


def _behind_shots(
    example: Example, talk: Conversation, shots: Sequence[Shot], tokenizer: PreTrainedTokenizerBase
) -> Example:
    """The example with other turns before its prompt; what is scored are the same tokens."""
    asked = talk.row.messages[:-1]
    before = [message for shot in shots for message in shot]
    own = tuple(tokenize_prompt(asked, tokenizer))
    start = len(own)
    earlier = any(label != IGNORED for label in example.labels[:start])
    if example.input_ids[:start] != own or earlier:
        raise DataError(f"{talk.id}: shots go before rows of one prompt and one answer")
    prompt = tuple(tokenize_prompt([*before, *asked], tokenizer))
    return dataclasses.replace(
        example,
        input_ids=prompt + example.input_ids[start:],
        labels=(IGNORED,) * len(prompt) + example.labels[start:],
    )


def _generation_item(
    talk: Conversation, shots: Sequence[Shot], spec: TaskSpec, tokenizer: PreTrainedTokenizerBase
) -> Item:
    row = talk.row
    if row.text is not None:
        raise DataError(f"{talk.id}: a generation task needs a prompt, found a text alone")
    return Item(
        id=talk.id,
        cluster=talk.cluster,
        prompt=_shown(row),
        reference=talk.references[0],
        request=_generation(row.messages[:-1], shots, spec, tokenizer, talk.id),
        slices=talk.slices,
        references=talk.references,
    )


def _instruction_item(
    instruction: Instruction,
    shots: Sequence[Shot],
    spec: TaskSpec,
    tokenizer: PreTrainedTokenizerBase,
) -> Item:
    row = instruction.row
    return Item(
        id=instruction.id,
        cluster=instruction.cluster,
        prompt=row.prompt,
        reference="; ".join(f"{check.kind}: {check.value}" for check in row.checks),
        request=_generation([Message("user", row.prompt)], shots, spec, tokenizer, instruction.id),
        slices=instruction.slices,
        checks=row.checks,
    )


def _generation(
    own: Sequence[Message],
    shots: Sequence[Shot],
    spec: TaskSpec,
    tokenizer: PreTrainedTokenizerBase,
    origin: str,
) -> GenerationRequest:
    ids = tokenize_prompt(own, tokenizer)
    if len(ids) > spec.max_length:
        raise DataError(
            f"{origin}: the prompt has {len(ids)} tokens, task {spec.name} allows max_length "
            f"{spec.max_length}; raise it or shorten the prompt"
        )
    if shots:
        ids = tokenize_prompt([*(m for shot in shots for m in shot), *own], tokenizer)
    return GenerationRequest(tuple(ids), spec.max_new_tokens)


def _choice_item(
    row: Question, shots: Sequence[Shot], spec: TaskSpec, tokenizer: PreTrainedTokenizerBase
) -> Item:
    asked = filled(row, spec)
    if spec.chat or writes_pairs(tokenizer):
        turns = [*(message for shot in shots for message in shot), Message("user", asked)]
        if writes_pairs(tokenizer):
            said = tuple(Message("assistant", choice) for choice in row.choices)
            refuse_control_tokens(Row(row.id, "", said), control_tokens(tokenizer))
        prompt_ids = tokenize_prompt(turns, tokenizer)
        choice_ids = [tokenizer(c, add_special_tokens=False)["input_ids"] for c in row.choices]
    else:
        solved = "".join(f"{shot[-2].content} {shot[-1].content}\n\n" for shot in shots)
        prompt_ids, choice_ids = _continued(solved + asked, row.choices, tokenizer)
    if not prompt_ids:
        raise DataError(f"{row.id}: the prompt is empty, so nothing predicts the choices")
    return Item(
        id=row.id,
        cluster=row.cluster,
        prompt=asked,
        reference=row.choices[row.answer],
        request=ChoiceRequest(
            tuple(prompt_ids[-spec.max_length :]),
            tuple(Branch(tuple(ids), len(ids)) for ids in choice_ids),
        ),
        slices=row.slices,
        choices=row.choices,
        answer=row.answer,
    )


def _continued(
    prompt: str, choices: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[list[int]]]:
    """Tokens of the prompt, and of each choice behind it."""
    prompt_ids = list(tokenizer(prompt)["input_ids"])
    choice_ids = []
    for choice in choices:
        ids = tokenizer(f"{prompt} {choice}")["input_ids"]
        if ids[: len(prompt_ids)] != prompt_ids:
            # Some tokenizers merge over the border; then the choice is tokenized on its own.
            ids = prompt_ids + tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
        choice_ids.append(ids[len(prompt_ids) :])
    return prompt_ids, choice_ids


def filled(row: Question, spec: TaskSpec) -> str:
    """The template with the row's fields in it."""
    template = spec.template or (QUESTION if spec.kind == "multiple_choice" else TEXT)

    def value(match: re.Match[str]) -> str:
        if match[1] not in row.fields:
            raise DataError(
                f"{row.id}: no field {match[1]!r}, which the template of task {spec.name} names; "
                f"it has {', '.join(row.fields)}"
            )
        return row.fields[match[1]]

    return re.sub(FIELD, value, template)


def _shown(row: Row) -> str:
    return "\n\n".join(message.content for message in row.messages[:-1])


def content(task: Task) -> list[Mapping[str, Any]]:
    """All of a task's items that results depend on, as JSON."""
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
        }
        for item in task.items
    ]
