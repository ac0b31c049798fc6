"""Conversion of a task's rows to items: prompts and answers as token ids."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_kit.backbone.encoder_decoder import is_seq2seq_tokenizer
from lora_kit.data.rows import Message, Row
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.data.templates import control_tokens, refuse_control_tokens
from lora_kit.data.tokenization import tokenize, tokenize_beginning, tokenize_prompt
from lora_kit.evaluation.item import Item
from lora_kit.evaluation.questions import Question
from lora_kit.evaluation.reading import Conversation, Instruction
from lora_kit.evaluation.requests import Branch, ChoiceRequest, GenerationRequest, LossRequest
from lora_kit.evaluation.task_spec import TEMPLATE_FIELD, TaskSpec
from lora_kit.evaluation.thoughts import NO_THINKING, Thinking, opens_thought
from lora_kit.evaluation.tool_prompts import prompt_with_tools
from lora_kit.metrics.instruction_checks import CheckValue
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A solved example: turns that precede those of the item.
Shot = tuple[Message, ...]


def loss_item(
    conversation: Conversation,
    shots: Sequence[Shot],
    spec: TaskSpec,
    tokenizer: PreTrainedTokenizerBase,
) -> Item:
    """Build an item whose score is the loss of the reference.

    Raises:
        DataError: if no token is left to score, or the row takes no shots.
    """
    row, name = conversation.row, conversation.id
    if shots and row.text is not None:
        raise DataError(
            f"{name}: a text without turns takes no shots (got {len(shots)}). Fix: remove `shots` "
            f"from task {spec.name}"
        )
    example = tokenize(row, tokenizer, spec.max_length)
    if shots:
        example = _with_shots(example, conversation, shots, tokenizer)
    if not example.supervised and row.messages and row.messages[-1].trained is False:
        raise DataError(
            f"{name}: the answer is switched off, so that there is nothing to score (got a switch "
            "of the turn). Fix: remove the switch, or the item"
        )
    if not example.supervised:
        raise DataError(
            f"{name}: no token to score within max_length of task {spec.name} (got "
            f"{spec.max_length}). Fix: raise max_length"
        )
    scored = [label for label in example.labels if label != IGNORE_INDEX]
    return Item(
        id=name,
        cluster=conversation.cluster,
        prompt=_prompt_text(row),
        reference=conversation.references[0],
        request=LossRequest(example),
        slices=conversation.slices,
        references=conversation.references,
        scored_bytes=len(str(tokenizer.decode(scored, skip_special_tokens=True)).encode()),
    )


def _with_shots(
    example: Example,
    conversation: Conversation,
    shots: Sequence[Shot],
    tokenizer: PreTrainedTokenizerBase,
) -> Example:
    """Insert shots before the prompt of an example; the scored tokens stay the same."""
    turns = conversation.row.messages[:-1]
    before = [message for shot in shots for message in shot]
    tools = conversation.row.tools
    own = tuple(tokenize_prompt(turns, tokenizer, tools))
    start = len(own)
    is_earlier_supervised = any(label != IGNORE_INDEX for label in example.labels[:start])
    if example.input_ids[:start] != own or is_earlier_supervised:
        raise DataError(
            f"{conversation.id}: only rows of one prompt and one answer take shots (got "
            f"{len(turns) + 1} turns). Fix: remove `shots`"
        )
    prompt = tuple(tokenize_prompt([*before, *turns], tokenizer, tools))
    return dataclasses.replace(
        example,
        input_ids=prompt + example.input_ids[start:],
        labels=(IGNORE_INDEX,) * len(prompt) + example.labels[start:],
    )


def generation_item(
    conversation: Conversation,
    shots: Sequence[Shot],
    spec: TaskSpec,
    tokenizer: PreTrainedTokenizerBase,
    thinking: Thinking = NO_THINKING,
) -> Item:
    """Build an item whose score is that of the generated text: a metric, or a judge's preference.

    Raises:
        DataError: if the row has no prompt, or one longer than `max_length`.
    """
    row, name = conversation.row, conversation.id
    if row.text is not None:
        raise DataError(
            f"{name}: a {spec.kind} task needs a prompt (got a text without turns). Fix: add a "
            "prompt and an answer, or use `kind: loss`"
        )
    prompt = GeneratedFrom(row.prompt_turns, shots, row.tools, thinking)
    request = _generation_request(prompt, spec, tokenizer, name)
    return Item(
        id=name,
        cluster=conversation.cluster,
        prompt=_prompt_text(row),
        reference=conversation.references[0] if conversation.references else "",
        request=request,
        opens_thought=opens_thought(tokenizer.decode(request.prompt_ids)),
        slices=conversation.slices,
        references=conversation.references,
    )


def instruction_item(
    instruction: Instruction,
    shots: Sequence[Shot],
    spec: TaskSpec,
    tokenizer: PreTrainedTokenizerBase,
    thinking: Thinking = NO_THINKING,
) -> Item:
    """Build an item whose score is 1 if the response passes all checks.

    Raises:
        DataError: if the prompt is longer than `max_length`.
    """
    row = instruction.row
    turns, tools = prompt_with_tools(row.prompt, row.tools, tokenizer, has_shots=bool(shots))
    prompt = GeneratedFrom(turns, shots, tools, thinking)
    request = _generation_request(prompt, spec, tokenizer, instruction.id)
    return Item(
        id=instruction.id,
        cluster=instruction.cluster,
        prompt=row.prompt,
        reference="; ".join(f"{check.kind}: {_shown(check.value)}" for check in row.checks),
        request=request,
        opens_thought=opens_thought(tokenizer.decode(request.prompt_ids)),
        slices=instruction.slices,
        checks=row.checks,
    )


def _shown(value: CheckValue) -> str:
    """Return a check's value for reports; schemas and calls as JSON."""
    is_text = isinstance(value, tuple) and all(isinstance(one, str) for one in value)
    if isinstance(value, Mapping | tuple) and not is_text:
        return json.dumps(value, ensure_ascii=False)
    return str(value)


@dataclasses.dataclass(frozen=True)
class GeneratedFrom:
    """Prompt of a generated answer.

    Attributes:
        turns: turns before the answer.
        shots: solved examples before them.
        tools: JSON schemas of the tools available to the assistant.
        thinking: thinking before the answer.
    """

    turns: Sequence[Message]
    shots: Sequence[Shot]
    tools: Sequence[Mapping[str, Any]]
    thinking: Thinking


def _generation_request(
    prompt: GeneratedFrom, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, origin: str
) -> GenerationRequest:
    thinks, limit = prompt.thinking.tokens > 0, spec.max_new_tokens + prompt.thinking.tokens
    ids = tokenize_prompt(prompt.turns, tokenizer, prompt.tools, thinks)
    if len(ids) > spec.max_length:
        raise DataError(
            f"{origin}: prompt longer than max_length {spec.max_length} of task {spec.name} (got "
            f"{len(ids)} tokens). Fix: raise max_length, or shorten the prompt"
        )
    if prompt.shots:
        turns = [*(message for shot in prompt.shots for message in shot), *prompt.turns]
        ids = tokenize_prompt(turns, tokenizer, prompt.tools, thinks)
    return GenerationRequest(tuple(ids), limit)


def choice_item(
    row: Question, shots: Sequence[Shot], spec: TaskSpec, tokenizer: PreTrainedTokenizerBase
) -> Item:
    """Build an item whose score depends on the likelihoods of its choices.

    Raises:
        DataError: if the prompt is empty, or the row does not fit the template.
    """
    prompt = fill_template(row, spec)
    if spec.chat or is_seq2seq_tokenizer(tokenizer):
        turns = [*(message for shot in shots for message in shot), Message("user", prompt)]
        if is_seq2seq_tokenizer(tokenizer):
            answers = tuple(Message("assistant", choice) for choice in row.choices)
            refuse_control_tokens(Row(row.id, "", answers), control_tokens(tokenizer))
        prompt_ids = tokenize_prompt(turns, tokenizer)
        choice_ids = [tokenizer(c, add_special_tokens=False)["input_ids"] for c in row.choices]
    else:
        solved = "".join(f"{shot[-2].content} {shot[-1].content}\n\n" for shot in shots)
        prompt_ids, choice_ids = _continuations(solved + prompt, row.choices, tokenizer)
    if not prompt_ids:
        raise DataError(
            f"{row.id}: the prompt has no tokens (got {prompt!r}). Fix: correct `template` of task "
            f"{spec.name} or the row"
        )
    return Item(
        id=row.id,
        cluster=row.cluster,
        prompt=prompt,
        reference=row.choices[row.answer],
        request=ChoiceRequest(
            tuple(prompt_ids[-spec.max_length :]),
            tuple(Branch(tuple(ids), len(ids)) for ids in choice_ids),
        ),
        slices=row.slices,
        choices=row.choices,
        answer=row.answer,
    )


def _continuations(
    prompt: str, choices: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[list[int]]]:
    """Return the token ids of the prompt, and of each choice behind the prompt."""
    prompt_ids = tokenize_beginning(prompt, tokenizer)
    choice_ids = []
    for choice in choices:
        ids = tokenize_beginning(f"{prompt} {choice}", tokenizer)
        if ids[: len(prompt_ids)] != prompt_ids:
            # Some tokenizers merge over the border; then the choice is tokenized on its own.
            ids = prompt_ids + tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
        choice_ids.append(ids[len(prompt_ids) :])
    return prompt_ids, choice_ids


def fill_template(row: Question, spec: TaskSpec) -> str:
    """Return the task's template, filled with the fields of a row.

    Raises:
        DataError: if the row lacks a field of the template.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in row.fields:
            raise DataError(
                f"{row.id}: no field {match[1]!r} for `template` of task {spec.name} (got "
                f"{', '.join(row.fields)}). Fix: correct `template`, or set `columns`"
            )
        return row.fields[match[1]]

    return re.sub(TEMPLATE_FIELD, value, spec.prompt_template)


def _prompt_text(row: Row) -> str:
    return "\n\n".join(message.content for message in row.prompt_turns)
