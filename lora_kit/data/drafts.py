"""Rows as texts with marks: which characters of what the model reads are learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import jinja2

from lora_kit.backbone.encoder_decoder import writes_pairs
from lora_kit.data.rows import Row
from lora_kit.data.templates import has_thoughts, plain_prompt, refuse_unwritten, render
from lora_kit.recipe.data import TurnRole
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Labels = Literal["assistant", "last", "completion", "all"] | list[TurnRole]


class RewrittenTurnsError(DataError):
    """The chat template writes a turn otherwise once others follow it."""


@dataclass(frozen=True)
class Span:
    """A stretch of a text that is learned, in characters.

    Attributes:
        ended: whether it has to end with a special token.
    """

    start: int
    end: int
    ended: bool = False


@dataclass(frozen=True)
class Draft:
    """What the model reads of a row.

    Attributes:
        spans: what is learned of it, in order; `None` for all.
        special: whether the tokenizer adds the tokens that begin a text: a chat template writes
            them itself.
        closed: whether the token that ends a text is appended, and learned; `None`: not appended.
    """

    text: str
    spans: tuple[Span, ...] | None
    special: bool
    closed: bool | None = None


def draft(row: Row, tokenizer: PreTrainedTokenizerBase, labels: Labels) -> Draft:
    """A row as one text.

    Raises:
        RewrittenTurnsError: if the chat template leaves no trace of how an earlier turn was said.
        DataError: if the backbone cannot carry the row otherwise.
    """
    if writes_pairs(tokenizer):
        _require_an_answer(row, labels)
    if row.text is not None:
        return Draft(row.text, None, special=True)
    if not tokenizer.chat_template:
        return _completion(row, labels)
    refuse_unwritten(row, tokenizer)
    return _conversation(row, tokenizer, labels, len(row.messages), learned_turns(row, labels))


def _require_an_answer(row: Row, labels: Labels) -> None:
    """Raises DataError for what an encoder with a decoder does not write."""
    if row.text is not None or not row.messages or row.messages[-1].role != "assistant":
        raise DataError(
            f"{row.origin}: this backbone is an encoder with a decoder, which learns and scores "
            "answers to prompts; found a text without one. Give prompt and completion"
        )
    if labels == "all" or (isinstance(labels, list) and labels != ["assistant"]):
        raise DataError(
            f"data.train_on: {labels}: this backbone is an encoder with a decoder, and what the "
            "encoder reads is not learned; possible: assistant, last, completion"
        )


def drafts(row: Row, tokenizer: PreTrainedTokenizerBase, labels: Labels) -> list[Draft]:
    """A row as one text or, where the template rewrites turns, as one for each that is learned.

    Templates such as Qwen3's leave the thoughts out of earlier turns. What they write then is not
    what the model says, so that each turn is learned in the conversation up to it.

    Raises:
        DataError: if the backbone cannot carry the row.
    """
    try:
        return [draft(row, tokenizer, labels)]
    except RewrittenTurnsError:
        return [
            _conversation(row, tokenizer, labels, turn + 1, [turn])
            for turn in learned_turns(row, labels)
        ]


def learned_turns(row: Row, labels: Labels) -> list[int]:
    """The turns of a conversation that are learned."""
    roles = ["assistant"] if isinstance(labels, str) else labels
    turns = [turn for turn, message in enumerate(row.messages) if message.role in roles]
    if labels == "last" or (labels == "completion" and row.completion_from is None):
        return turns[-1:]
    if labels == "completion":
        return [turn for turn in turns if turn >= (row.completion_from or 0)]
    return turns


def _conversation(
    row: Row, tokenizer: PreTrainedTokenizerBase, labels: Labels, end: int, turns: list[int]
) -> Draft:
    """The first `end` turns of a row, of which `turns` are learned."""
    try:
        whole = render(row.messages[:end], tokenizer, False, row.tools)
        if labels == "all":
            return Draft(whole, None, special=False)
        spans = tuple(_turn(row, tokenizer, whole, end, turn) for turn in turns)
    except (jinja2.TemplateError, ValueError) as error:
        raise DataError(f"{row.origin}: the chat template refuses this row: {error}") from error
    return Draft(whole, spans, special=False)


def _turn(row: Row, tokenizer: PreTrainedTokenizerBase, whole: str, end: int, turn: int) -> Span:
    """Where a turn stands: an answer behind what asks for it, other turns by their words."""
    message = row.messages[turn]
    until = whole
    if turn + 1 < end:
        until = render(row.messages[: turn + 1], tokenizer, False, row.tools)
    if not whole.startswith(until):
        raise RewrittenTurnsError(
            f"{row.origin}: the chat template rewrites earlier turns, so that turn {turn} cannot "
            "be marked in the whole conversation; give one row for each answer"
        )
    if message.role != "assistant":
        start = until.rfind(message.content.strip())
        if start < 0:
            raise DataError(
                f"{row.origin}: the chat template does not write the {message.role}'s turn {turn} "
                "as it is, so that it cannot be learned; leave its role out of data.train_on"
            )
        return Span(start, len(until))
    before = render(row.messages[:turn], tokenizer, True, row.tools, thinking=has_thoughts(message))
    if not until.startswith(before):
        raise DataError(
            f"{row.origin}: the chat template rewrites earlier turns when it writes turn {turn}, "
            "so that where it begins cannot be told; name a backbone with another template"
        )
    return Span(len(before), len(until), ended=True)


def _completion(row: Row, labels: Labels) -> Draft:
    """A prompt and its completion for a backbone without chat template."""
    roles = [message.role for message in row.messages]
    if roles != ["user", "assistant"] or row.tools or row.messages[1].tool_calls:
        raise DataError(
            f"{row.origin}: this backbone has no chat template, so a row has one prompt and one "
            f"completion; found the turns {', '.join(roles)}" + (" and tools" if row.tools else "")
        )
    prompt = plain_prompt([row.messages[0].content])
    text = prompt + row.messages[1].content
    if labels == "all":
        return Draft(text, None, special=True, closed=True)
    parts = (Span(0, len(prompt)), Span(len(prompt), len(text)))
    learned = learned_turns(row, labels)
    return Draft(text, tuple(parts[turn] for turn in learned), special=True, closed=1 in learned)
