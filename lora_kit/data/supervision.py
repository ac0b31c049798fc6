"""Token ids and labels of rendered rows; the single definition of a supervised token.

Labels follow the convention of transformers: `labels[i]` is `input_ids[i]` if the token is
supervised and -100 otherwise; the model shifts them.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

from lora_kit.data.rendering import RenderedRow, TextSpan
from lora_kit.data.rows import Row
from lora_kit.data.templates import appended_tokens, special_token_ids
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
NO_END_MESSAGE = (
    "the chat template ends the assistant's turn without a special token (got none), so the model "
    "could not learn when to stop. Fix: use a backbone with another chat template"
)
Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Example:
    """One tokenized row, or the part of a row up to one turn.

    Attributes:
        input_ids: token ids, without padding.
        labels: labels, of the same length as `input_ids`; -100 for unsupervised tokens.
        truncated: if true, the row was longer than the limit.
        origin: origin of the row.
        cluster: cluster of the row.
        source: index of the row's source in the recipe, from 0.
        label: class or numbers of the row as text, if it has any.
        targets: a value for each output of a head; empty for other examples.
        unwritten: fields of the row's turns that the chat template does not write; known until
            the example is stored.
        weight: weight in the loss of a classification besides that of the class; set for a step.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    truncated: bool = False
    origin: str = ""
    cluster: str = ""
    source: int = 0
    label: str | None = None
    targets: tuple[float, ...] = ()
    unwritten: tuple[str, ...] = ()
    weight: float = 1.0

    @property
    def supervised(self) -> int:
        """Return the number of tokens with a label."""
        return sum(label != IGNORE_INDEX for label in self.labels)


def truncated(example: Example, size: int) -> Example:
    """Return an example with at most `size` tokens."""
    return dataclasses.replace(
        example,
        input_ids=example.input_ids[:size],
        labels=example.labels[:size],
        truncated=len(example.input_ids) > size,
    )


def label_rows(
    pairs: Sequence[tuple[Row, RenderedRow]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    end: int | None = None,
) -> list[Example]:
    """Tokenize rendered rows, those of one kind in one call, which fast tokenizers parallelize.

    Args:
        pairs: rows and their rendered texts.
        tokenizer: tokenizer of the backbone.
        max_length: maximum tokens per example.
        end: id of the end-of-turn token that fully supervised conversations must contain.

    Raises:
        DataError: if a turn does not end with a special token, or the tokenizer gives no offsets.
    """
    special = special_token_ids(tokenizer)
    if not tokenizer.is_fast and any(one.spans is not None for _, one in pairs):
        raise DataError(
            "backbone.model: a tokenizer written in Python gives no token offsets, which are "
            f"needed to locate the answers (got {type(tokenizer).__name__}). Fix: use a backbone "
            "with a tokenizer.json, or train on texts"
        )
    appended = appended_tokens(tokenizer)
    examples: dict[int, Example] = {}
    kinds = [(one.add_special_tokens, one.spans is None) for _, one in pairs]
    for kind in set(kinds):
        places = [place for place, other in enumerate(kinds) if other == kind]
        add_special_tokens, is_fully_supervised = kind
        encoded = tokenizer(
            [pairs[place][1].text for place in places],
            add_special_tokens=add_special_tokens,
            return_offsets_mapping=not is_fully_supervised,
        )
        for number, place in enumerate(places):
            row, one = pairs[place]
            input_ids = list(encoded["input_ids"][number])
            if one.spans is None:
                labels = list(input_ids)
                if end is not None and row.messages and end not in labels:
                    raise DataError(f"{row.origin}: {NO_END_MESSAGE}")
            else:
                offsets = encoded["offset_mapping"][number]
                labels = _labels(row, one, input_ids, offsets, special)
            if one.eos_supervised is not None:
                end_token = _end_text(input_ids, labels, tokenizer, appended)
                labels[-1] = end_token if one.eos_supervised else IGNORE_INDEX
            examples[place] = _example(row, input_ids, labels, max_length)
    return [examples[place] for place in range(len(pairs))]


def _end_text(
    input_ids: list[int],
    labels: list[int],
    tokenizer: PreTrainedTokenizerBase,
    appended: Sequence[int],
) -> int:
    """End a text with one end token, and return its id.

    Args:
        input_ids: ids of the text; changed in place.
        labels: labels of the text; changed in place.
        tokenizer: tokenizer of the backbone.
        appended: ids that the tokenizer has appended by itself. The first is where the model has
            to stop.
    """
    if appended:
        length = len(input_ids) - len(appended) + 1
        del input_ids[length:], labels[length:]
    elif input_ids[-1:] != [tokenizer.eos_token_id]:
        input_ids.append(tokenizer.eos_token_id)
        labels.append(IGNORE_INDEX)
    return input_ids[-1]


def _labels(
    row: Row, one: RenderedRow, input_ids: Sequence[int], offsets: Offsets, special: Collection[int]
) -> list[int]:
    labels = [IGNORE_INDEX] * len(input_ids)
    for span in one.spans or ():
        if one.add_special_tokens:
            # Plain prompt and completion: a token belongs to the span that contains its end.
            for position, (_, token_end) in enumerate(offsets):
                if span.start < token_end <= span.end:
                    labels[position] = input_ids[position]
            continue
        has_end = _supervise_turn(input_ids, labels, offsets, span, special)
        if span.ends_in_special_token and not has_end:
            raise DataError(f"{row.origin}: {NO_END_MESSAGE}")
    return labels


def _supervise_turn(
    input_ids: Sequence[int],
    labels: list[int],
    offsets: Offsets,
    span: TextSpan,
    special: Collection[int],
) -> bool:
    """Label the tokens of one turn, up to and including the special token that ends it.

    The last special token of the turn counts as its end: some templates start a turn, or a tool
    call in it, with a special token.

    Returns:
        True if the turn ends with a special token.
    """
    if span.follows_prompt:
        first = bisect_left(offsets, span.start, key=itemgetter(0))
    else:
        # A token with the blank before the content belongs to the turn.
        first = bisect_right(offsets, span.start, key=itemgetter(1))
    inside = [n for n in range(first, len(offsets)) if offsets[n][1] <= span.end]
    ends = [n for n in inside if input_ids[n] in special and n > first]
    for position in inside:
        if not ends or position <= ends[-1]:
            labels[position] = input_ids[position]
    return bool(ends)


def _example(row: Row, input_ids: list[int], labels: list[int], max_length: int) -> Example:
    # Tokens after the last supervised one have no effect on the loss of a causal model.
    supervised = [i for i, label in enumerate(labels) if label != IGNORE_INDEX]
    end = supervised[-1] + 1 if supervised else len(labels)
    # The first token has no token before it from which it could be predicted.
    labels[:1] = [IGNORE_INDEX]
    complete = Example(
        input_ids=tuple(input_ids[:end]),
        labels=tuple(labels[:end]),
        origin=row.origin,
        cluster=row.cluster,
        label=row.label,
    )
    return truncated(complete, max_length)
