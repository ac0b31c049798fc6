"""A task made ready: its items, tokenized once and the same for every arm."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_kit.data.rows import Message, Row
from lora_kit.data.sources import BUILT_IN, json_lines, read_source
from lora_kit.data.tokenization import Example, tokenize, tokenize_prompt
from lora_kit.errors import DataError
from lora_kit.evaluation.checks import Check
from lora_kit.evaluation.items import instructions, knowledge
from lora_kit.evaluation.suite import TaskSpec
from lora_kit.recipe import SourceSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Item:
    """What every kind of item has: who it is, and how it is shown."""

    id: str
    cluster: str
    prompt: str
    reference: str


@dataclass(frozen=True)
class LossItem(Item):
    """Scored by the loss of its supervised tokens."""

    example: Example


@dataclass(frozen=True)
class ChoiceItem(Item):
    """Scored by which continuation of the prompt is the most likely."""

    prompt_ids: tuple[int, ...]
    choice_ids: tuple[tuple[int, ...], ...]
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class GenerationItem(Item):
    """Scored by what is generated: against references, or by checks."""

    prompt_ids: tuple[int, ...]
    references: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class Task:
    """A task with its items."""

    spec: TaskSpec
    items: Sequence[LossItem] | Sequence[ChoiceItem] | Sequence[GenerationItem]


def build_task(spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, seed: int) -> Task:
    """Read and tokenize a task's items.

    Raises:
        DataError: if the source does not fit the kind, or an item is wrong.
    """
    builders: dict[str, Callable[[TaskSpec, PreTrainedTokenizerBase], list[Any]]] = {
        "loss": _loss_items,
        "multiple_choice": _choice_items,
        "generation": _generation_items,
        "instructions": _instruction_items,
    }
    items = builders[spec.kind](spec, tokenizer)
    if not items:
        raise DataError(f"task {spec.name}: {spec.source} has no items in split {spec.split}")
    ids = Counter(item.id for item in items)
    twice, count = ids.most_common(1)[0]
    if count > 1:
        raise DataError(f"task {spec.name}: {count} items of {spec.source} have the id {twice!r}")
    if spec.limit is not None and spec.limit < len(items):
        chosen = random.Random(f"{seed}/{spec.name}").sample(range(len(items)), spec.limit)
        items = [items[index] for index in sorted(chosen)]
    return Task(spec, items)


def _rows(spec: TaskSpec) -> list[Row]:
    # A file has no splits; everything in it is there to be evaluated.
    split = spec.split if spec.source in BUILT_IN else "all"
    source = SourceSpec(source=spec.source, split=split)
    return read_source(source, 0, f"task {spec.name}: source")


def _loss_items(spec: TaskSpec, tokenizer: PreTrainedTokenizerBase) -> list[LossItem]:
    items = []
    for row in _rows(spec):
        example = tokenize(row, tokenizer, spec.max_length)
        if not example.supervised:
            raise DataError(
                f"{row.origin}: nothing to score within max_length {spec.max_length} of task "
                f"{spec.name}; raise it"
            )
        reference = row.text if row.text is not None else row.messages[-1].content
        items.append(LossItem(row.origin, row.cluster, _shown(row), reference, example))
    return items


def _generation_items(spec: TaskSpec, tokenizer: PreTrainedTokenizerBase) -> list[GenerationItem]:
    items = []
    for row in _rows(spec):
        if row.text is not None:
            raise DataError(f"{row.origin}: a generation task needs a prompt, found a text alone")
        reference = row.messages[-1].content
        ids = _cut_prompt(tokenize_prompt(row.messages[:-1], tokenizer), spec, row.origin)
        items.append(
            GenerationItem(row.origin, row.cluster, _shown(row), reference, ids, (reference,))
        )
    return items


def _instruction_items(spec: TaskSpec, tokenizer: PreTrainedTokenizerBase) -> list[GenerationItem]:
    if spec.source != "instructions":
        raise DataError(
            f"task {spec.name}: source {spec.source}; an instructions task takes `instructions`"
        )
    items = []
    for row in instructions.rows():
        ids = tokenize_prompt([Message("user", row.prompt)], tokenizer)
        checks = "; ".join(f"{check.kind}: {check.value}" for check in row.checks)
        items.append(
            GenerationItem(
                row.id,
                row.id,
                row.prompt,
                checks,
                _cut_prompt(ids, spec, row.id),
                checks=tuple(row.checks),
            )
        )
    return items


def _choice_items(spec: TaskSpec, tokenizer: PreTrainedTokenizerBase) -> list[ChoiceItem]:
    if spec.source == "general-knowledge":
        rows = [(row.id, row.question, tuple(row.choices), row.answer) for row in knowledge.rows()]
    else:
        rows = _read_choices(Path(spec.source), spec)
    return [_choice_item(row, spec, tokenizer) for row in rows]


ChoiceRow = tuple[str, str, tuple[str, ...], int]


def _read_choices(path: Path, spec: TaskSpec) -> list[ChoiceRow]:
    """Rows with `question`, `choices`, `answer` (index of the right one) and, if wanted, `id`."""
    if path.suffix not in (".jsonl", ".ndjson") or not path.is_file():
        raise DataError(
            f"task {spec.name}: {path}: neither `general-knowledge` nor a .jsonl file that exists"
        )
    return [_choice_row(value, origin) for value, origin in json_lines(path)]


def _choice_row(value: object, origin: str) -> ChoiceRow:
    wanted = '{"question": "...", "choices": ["...", "..."], "answer": 0}'
    if not isinstance(value, dict) or not {"question", "choices", "answer"} <= set(value):
        raise DataError(f"{origin}: {wanted} is wanted")
    question, choices, answer = value["question"], value["choices"], value["answer"]
    if (
        not isinstance(question, str)
        or not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) and choice.strip() for choice in choices)
    ):
        raise DataError(f"{origin}: a question and at least two choices are wanted: {wanted}")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise DataError(
            f"{origin}: `answer` is {answer!r}; the index of a choice is wanted, 0 to "
            f"{len(choices) - 1}"
        )
    identifier = value.get("id")
    return origin if identifier is None else str(identifier), question, tuple(choices), answer


def _choice_item(row: ChoiceRow, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase) -> ChoiceItem:
    identifier, question, choices, answer = row
    prompt = f"Question: {question}\nAnswer:"
    prompt_ids = tokenizer(prompt)["input_ids"]
    choice_ids = []
    for choice in choices:
        ids = tokenizer(f"{prompt} {choice}")["input_ids"]
        if ids[: len(prompt_ids)] != prompt_ids:
            # Some tokenizers merge over the border; then the choice is tokenized on its own.
            ids = prompt_ids + tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
        choice_ids.append(tuple(ids[len(prompt_ids) :]))
    kept = tuple(prompt_ids[-spec.max_length :])
    return ChoiceItem(
        identifier, identifier, prompt, choices[answer], kept, tuple(choice_ids), choices, answer
    )


def _cut_prompt(ids: list[int], spec: TaskSpec, origin: str) -> tuple[int, ...]:
    if len(ids) > spec.max_length:
        raise DataError(
            f"{origin}: the prompt has {len(ids)} tokens, task {spec.name} allows max_length "
            f"{spec.max_length}; raise it or shorten the prompt"
        )
    return tuple(ids)


def _shown(row: Row) -> str:
    return "\n\n".join(message.content for message in row.messages[:-1])
