"""Tokenization of rows into examples, and of prompts as examples have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jinja2

from lora_kit.backbone.encoder_decoder import is_seq2seq_tokenizer
from lora_kit.data.rendering import render_row, render_turns
from lora_kit.data.rows import Message, Row
from lora_kit.data.supervision import IGNORE_INDEX, Example, label_rows, truncated
from lora_kit.data.templates import (
    appended_tokens,
    control_tokens,
    plain_prompt,
    refuse_control_tokens,
    render,
    require_written,
    template_refusal,
)
from lora_kit.data.unwritten import UnwrittenParts
from lora_kit.recipe.data import TrainOn
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Maximum length that truncates no row, in tokens.
NO_LIMIT = 1 << 40


def tokenize(
    row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int, train_on: TrainOn = "assistant"
) -> Example:
    """Tokenize one row into one example, truncated to `max_length` tokens.

    Raises:
        DataError: if the row holds control tokens, or the chat template does not support its
            turns.
    """
    refuse_control_tokens(row, control_tokens(tokenizer))
    end = _required_end_token([row], tokenizer, train_on)
    return label_rows([(row, render_row(row, tokenizer, train_on))], tokenizer, max_length, end)[0]


def tokenize_rows(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    train_on: TrainOn,
    split: bool = False,
) -> list[list[Example]]:
    """Tokenize rows, each into as many examples as its chat template or length requires.

    Args:
        rows: rows to tokenize together.
        tokenizer: tokenizer of the backbone.
        max_length: maximum tokens per example.
        train_on: turns of a conversation to supervise (`data.train_on`).
        split: if true, texts longer than `max_length` are split instead of truncated, and a
            supervised EOS token is appended to each text.

    Returns:
        The examples of each row.

    Raises:
        DataError: if a row holds control tokens, or the chat template does not support its turns.
    """
    control = control_tokens(tokenizer)
    rendered = []
    end = _required_end_token(rows, tokenizer, train_on)
    parts = UnwrittenParts(tokenizer)
    for row in rows:
        refuse_control_tokens(row, control)
        texts = render_turns(row, tokenizer, train_on)
        if split and row.text is not None:
            texts = [replace(one, eos_supervised=True) for one in texts]
        rendered.append(texts)
    pairs = [(row, one) for row, texts in zip(rows, rendered, strict=True) for one in texts]
    limit = max_length if not split else NO_LIMIT
    examples = iter(label_rows(pairs, tokenizer, limit, end))
    examples_of_rows = [[next(examples) for _ in texts] for texts in rendered]
    for row, examples_of_row in zip(rows, examples_of_rows, strict=True):
        if unwritten := _unused_label(row) + parts.fields(row):
            examples_of_row[:] = [replace(one, unwritten=unwritten) for one in examples_of_row]
    if not split:
        return examples_of_rows
    return [
        [part for one in examples_of_row for part in _split(one, row, max_length)]
        for row, examples_of_row in zip(rows, examples_of_rows, strict=True)
    ]


def _unused_label(row: Row) -> tuple[str, ...]:
    """Return the column of a label for kto, which other objectives do not use.

    Raises:
        DataError: if the label says that the answer is bad, and it would be learned.
    """
    if row.desirable is False:
        raise DataError(
            f"{row.origin}: the label says that the answer is not to be learned (got label: false)."
            " Fix: set training.objective: kto, or remove the row"
        )
    return ("label",) if row.desirable else ()


def _split(example: Example, row: Row, size: int) -> list[Example]:
    """Split a text into examples of at most `size` tokens; truncate a conversation.

    Each part starts with the last token of the part before, from which its first supervised token
    is predicted.
    """
    length = len(example.input_ids)
    if row.text is None or length <= size:
        return [truncated(example, size)]
    return [
        replace(
            example,
            input_ids=example.input_ids[start : start + size],
            labels=(IGNORE_INDEX, *example.labels[start + 1 : start + size]),
        )
        for start in range(0, length - 1, max(size - 1, 1))
    ]


def tokenize_prompt(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[Mapping[str, Any]] = (),
    thinking: bool = False,
) -> list[int]:
    """Tokenize a prompt, with the start of the assistant's turn, exactly as in training.

    Args:
        messages: turns before the answer.
        tokenizer: tokenizer of the backbone.
        tools: JSON schemas of the tools available to the assistant.
        thinking: if true, the answer may start with reasoning; templates without this option
            ignore it.

    Raises:
        DataError: if the chat template does not support these turns, or the turns of a prompt for
            an encoder-decoder hold a control token.
    """
    if tokenizer.chat_template:
        if is_seq2seq_tokenizer(tokenizer):
            # An EOS token inside the prompt would be taken for the end of the encoder's input.
            refuse_control_tokens(Row("a prompt", "", tuple(messages)), control_tokens(tokenizer))
        try:
            text = render(messages, tokenizer, True, tools, thinking)
            require_written(
                messages,
                text,
                lambda turn: render(messages[: turn + 1], tokenizer, False, tools),
                "prompt",
            )
        except (jinja2.TemplateError, ValueError) as error:
            roles = ", ".join(message.role for message in messages)
            raise template_refusal("prompt", f"the turns {roles}", error) from error
        # The template writes the special tokens itself; the tokenizer must not write them again.
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return tokenize_beginning(plain_prompt([m.content for m in messages]), tokenizer)


def tokenize_beginning(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokenize a text that goes on: without the tokens that the tokenizer ends a text with.

    Args:
        text: text that the model continues.
        tokenizer: tokenizer of the backbone.
    """
    ids = list(tokenizer(text)["input_ids"])
    return ids[: len(ids) - len(appended_tokens(tokenizer))]


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the token that ends the assistant's turn and stops generation.

    Raises:
        DataError: if the chat template ends the turn without a special token.
    """
    probe = Row("chat template", "", (Message("user", "a"), Message("assistant", "b")))
    labels = tokenize(probe, tokenizer, NO_LIMIT).labels
    return labels[-1]


def _required_end_token(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, train_on: TrainOn
) -> int | None:
    """Return the id that each fully supervised conversation must contain; `None` otherwise.

    Other conversations are checked turn by turn.
    """
    if train_on == "all" and tokenizer.chat_template and any(row.messages for row in rows):
        return end_of_turn_id(tokenizer)
    return None
