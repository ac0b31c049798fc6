"""Rows -> tokens and labels: the one place that decides what a supervised token is.

Labels follow the convention of transformers: `labels[i]` is `input_ids[i]` where the token is
supervised and -100 elsewhere; the model shifts.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

import jinja2

from lora_kit.backbone.encoder_decoder import writes_pairs
from lora_kit.data.drafts import Draft, Labels, Span, draft, drafts
from lora_kit.data.rows import Message, Row
from lora_kit.data.templates import (
    control_tokens,
    plain_prompt,
    refuse_control_tokens,
    render,
    special_token_ids,
)
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
# More tokens than any row has.
NO_LIMIT = 1 << 40
NO_END = (
    "the chat template ends the assistant's turn without a special token; the model could not "
    "learn when to stop"
)
Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Example:
    """One tokenized row, or the part of it up to one turn.

    Attributes:
        input_ids: the tokens, without padding.
        labels: as long as `input_ids`; -100 where nothing is learned.
        truncated: whether the row was longer than the limit.
        origin: of the row.
        cluster: of the row.
        source: which of the recipe's sources the row is of, counted from 0.
        label: the row's class, if it has one.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    truncated: bool = False
    origin: str = ""
    cluster: str = ""
    source: int = 0
    label: str | None = None

    @property
    def supervised(self) -> int:
        """Tokens that the loss is taken on."""
        return sum(label != IGNORED for label in self.labels)


def tokenize(
    row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: Labels = "assistant"
) -> Example:
    """Tokenize one row to one example, cut at `max_length` tokens.

    Raises:
        DataError: if the row holds control tokens, or the chat template cannot carry its turns.
    """
    refuse_control_tokens(row, control_tokens(tokenizer))
    end = _end_where_all_is_learned([row], tokenizer, labels)
    return _examples([(row, draft(row, tokenizer, labels))], tokenizer, max_length, end)[0]


def tokenize_rows(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    labels: Labels,
    split: bool = False,
) -> list[list[Example]]:
    """Tokenize rows at a time, each to as many examples as chat template or length make necessary.

    Args:
        rows: some.
        tokenizer: of the backbone.
        max_length: tokens an example.
        labels: what is learned of a conversation.
        split: whether texts are split at that length instead of cut, and their end is marked.

    Raises:
        DataError: if a row holds control tokens, or the chat template cannot carry its turns.
    """
    control = control_tokens(tokenizer)
    several = []
    end = _end_where_all_is_learned(rows, tokenizer, labels)
    for row in rows:
        refuse_control_tokens(row, control)
        several.append(drafts(row, tokenizer, labels))
    if split:
        several = [
            [_ended(one, row) for one in many] for row, many in zip(rows, several, strict=True)
        ]
    pairs = [(row, one) for row, many in zip(rows, several, strict=True) for one in many]
    longest = max_length if not split else NO_LIMIT
    examples = iter(_examples(pairs, tokenizer, longest, end))
    whole = [[next(examples) for _ in many] for many in several]
    if not split:
        return whole
    return [
        [part for one in many for part in _windows(one, row, max_length)]
        for row, many in zip(rows, whole, strict=True)
    ]


def _ended(one: Draft, row: Row) -> Draft:
    return one if row.text is None else dataclasses.replace(one, closed=True)


def _windows(example: Example, row: Row, size: int) -> list[Example]:
    """A text in examples of at most `size` tokens; a conversation cut at that length.

    Each begins with the last token of the one before it, which it is predicted from.
    """
    length = len(example.input_ids)
    if row.text is None or length <= size:
        return [_cut(example, size)]
    return [
        dataclasses.replace(
            example,
            input_ids=example.input_ids[start : start + size],
            labels=(IGNORED, *example.labels[start + 1 : start + size]),
        )
        for start in range(0, length - 1, max(size - 1, 1))
    ]


def _cut(example: Example, size: int) -> Example:
    return dataclasses.replace(
        example,
        input_ids=example.input_ids[:size],
        labels=example.labels[:size],
        truncated=len(example.input_ids) > size,
    )


def tokenize_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens after which the assistant speaks, the same as in training.

    Raises:
        DataError: if the chat template cannot carry these turns, or an encoder would be ended by
            a control token in them.
    """
    if tokenizer.chat_template:
        if writes_pairs(tokenizer):
            # The one that ends a text would part source and answer in the midst of it.
            refuse_control_tokens(Row("a prompt", "", tuple(messages)), control_tokens(tokenizer))
        try:
            text = render(messages, tokenizer, add_generation_prompt=True)
        except (jinja2.TemplateError, ValueError) as error:
            roles = ", ".join(message.role for message in messages)
            raise DataError(f"the chat template refuses the turns {roles}: {error}") from error
        # The template writes the special tokens itself; the tokenizer must not write them again.
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer(plain_prompt([message.content for message in messages]))["input_ids"])


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends the assistant's turn, on which generation has to stop.

    Raises:
        DataError: if the chat template has none.
    """
    probe = Row("chat template", "", (Message("user", "a"), Message("assistant", "b")))
    labels = tokenize(probe, tokenizer, NO_LIMIT).labels
    return labels[-1]


def _end_where_all_is_learned(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, labels: Labels
) -> int | None:
    """The token that has to be in each conversation; `None` where turns are looked at one by one.

    Raises:
        DataError: if the chat template ends no turn with such a token.
    """
    is_checked = labels == "all" and tokenizer.chat_template and any(row.messages for row in rows)
    return end_of_turn(tokenizer) if is_checked else None


def _examples(
    pairs: Sequence[tuple[Row, Draft]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    end: int | None = None,
) -> list[Example]:
    """Tokenize drafts, those of one kind in one call, which fast tokenizers divide over cores.

    Args:
        pairs: rows, and what is read of them.
        tokenizer: of the backbone.
        max_length: tokens an example.
        end: of the assistant's turn, where conversations are learned whole.

    Raises:
        DataError: if a turn does not end with a special token, or where it stands is not told.
    """
    special = special_token_ids(tokenizer)
    if not tokenizer.is_fast and any(one.spans is not None for _, one in pairs):
        raise DataError(
            f"backbone.model: its tokenizer ({type(tokenizer).__name__}) is in Python alone, which "
            "does not tell where in a text a token stands, and so not what is an answer's; "
            "possible: a backbone with a tokenizer.json, or texts that are learned whole"
        )
    found: dict[int, Example] = {}
    kinds = [(one.special, one.spans is None) for _, one in pairs]
    for kind in set(kinds):
        places = [place for place, other in enumerate(kinds) if other == kind]
        adds_special, is_whole = kind
        encoded = tokenizer(
            [pairs[place][1].text for place in places],
            add_special_tokens=adds_special,
            return_offsets_mapping=not is_whole,
        )
        for number, place in enumerate(places):
            row, one = pairs[place]
            input_ids = list(encoded["input_ids"][number])
            if one.spans is None:
                labels = list(input_ids)
                if end is not None and row.messages and end not in labels:
                    raise DataError(f"{row.origin}: {NO_END}")
            else:
                offsets = encoded["offset_mapping"][number]
                labels = _labels(row, one, input_ids, offsets, special)
            if one.closed is not None:
                input_ids.append(tokenizer.eos_token_id)
                labels.append(tokenizer.eos_token_id if one.closed else IGNORED)
            found[place] = _example(row, input_ids, labels, max_length)
    return [found[place] for place in range(len(pairs))]


def _labels(
    row: Row, one: Draft, input_ids: Sequence[int], offsets: Offsets, special: Collection[int]
) -> list[int]:
    labels = [IGNORED] * len(input_ids)
    for span in one.spans or ():
        if one.special:
            # Of a plain text: a token is of the part that it ends in.
            for position, (_, last) in enumerate(offsets):
                if span.start < last <= span.end:
                    labels[position] = input_ids[position]
        elif not _supervise_turn(input_ids, labels, offsets, span, special) and span.ended:
            raise DataError(f"{row.origin}: {NO_END}")
    return labels


def _supervise_turn(
    input_ids: Sequence[int],
    labels: list[int],
    offsets: Offsets,
    span: Span,
    special: Collection[int],
) -> bool:
    """Label the tokens of one turn up to and with the special token that ends it, if one does.

    That is its last one: some templates begin a turn, or a call in it, with a special token.
    """
    first = bisect_left(offsets, span.start, key=itemgetter(0))
    inside = [n for n in range(first, len(offsets)) if offsets[n][1] <= span.end]
    ends = [n for n in inside if input_ids[n] in special and n > first]
    for position in inside:
        if not ends or position <= ends[-1]:
            labels[position] = input_ids[position]
    return bool(ends)


def _example(row: Row, input_ids: list[int], labels: list[int], max_length: int) -> Example:
    # Tokens after the last supervised one change nothing in a causal model.
    end = max((i + 1 for i, label in enumerate(labels) if label != IGNORED), default=len(labels))
    # Nothing precedes the first token that it could be predicted from.
    labels[:1] = [IGNORED]
    whole = Example(
        input_ids=tuple(input_ids[:end]),
        labels=tuple(labels[:end]),
        origin=row.origin,
        cluster=row.cluster,
        label=row.label,
    )
    return _cut(whole, max_length)
