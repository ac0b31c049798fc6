"""Rows -> tokens and labels: the one place that decides what a supervised token is.

Labels follow the convention of transformers: `labels[i]` is `input_ids[i]` where the token is
supervised and -100 elsewhere; the model shifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jinja2

from lora_kit.data.rows import Message, Row
from lora_kit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """One tokenized row.

    Attributes:
        input_ids: the tokens, without padding.
        labels: as long as `input_ids`; -100 where nothing is learned.
        truncated: whether the row was longer than the limit.
        origin: of the row.
        cluster: of the row.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    truncated: bool = False
    origin: str = ""
    cluster: str = ""

    @property
    def supervised(self) -> int:
        """Tokens that the loss is taken on."""
        return sum(label != IGNORED for label in self.labels)


def tokenize(row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Example:
    """Tokenize one row, cut at `max_length` tokens.

    Raises:
        DataError: if the row holds control tokens, or the chat template cannot carry its turns.
    """
    if row.text is not None:
        input_ids = tokenizer(row.text)["input_ids"]
        labels = list(input_ids)
    elif tokenizer.chat_template:
        _refuse_control_tokens(row, tokenizer)
        try:
            input_ids, labels = _conversation(row, tokenizer)
        except (jinja2.TemplateError, ValueError) as error:
            raise DataError(f"{row.origin}: the chat template refuses this row: {error}") from error
    else:
        input_ids, labels = _completion(row, tokenizer)
    # Tokens after the last supervised one change nothing in a causal model.
    end = max((i + 1 for i, label in enumerate(labels) if label != IGNORED), default=len(labels))
    kept = min(end, max_length)
    # Nothing precedes the first token that it could be predicted from.
    labels[:1] = [IGNORED]
    return Example(
        input_ids=tuple(input_ids[:kept]),
        labels=tuple(labels[:kept]),
        truncated=end > max_length,
        origin=row.origin,
        cluster=row.cluster,
    )


def render(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool
) -> str:
    """The conversation as the chat template writes it."""
    text = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        # Rows hold no thoughts, so the model is not asked for any; other templates ignore it.
        enable_thinking=False,
    )
    return str(text)


def tokenize_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens after which the assistant speaks, the same as in training.

    Raises:
        DataError: if the chat template cannot carry these turns.
    """
    if tokenizer.chat_template:
        try:
            text = render(messages, tokenizer, add_generation_prompt=True)
        except (jinja2.TemplateError, ValueError) as error:
            roles = ", ".join(message.role for message in messages)
            raise DataError(f"the chat template refuses the turns {roles}: {error}") from error
        # The template writes the special tokens itself; the tokenizer must not write them again.
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer(_plain_prompt([message.content for message in messages]))["input_ids"])


def _plain_prompt(contents: Sequence[str]) -> str:
    """A prompt for a backbone without chat template: the answer begins on a line of its own."""
    text = "\n".join(contents)
    return text if text[-1:].isspace() else f"{text}\n"


def _conversation(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    whole = render(row.messages, tokenizer, add_generation_prompt=False)
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    input_ids: list[int] = encoded["input_ids"]
    labels = [IGNORED] * len(input_ids)
    for index, message in enumerate(row.messages):
        if message.role != "assistant":
            continue
        before = render(row.messages[:index], tokenizer, add_generation_prompt=True)
        until = render(row.messages[: index + 1], tokenizer, add_generation_prompt=False)
        if not (until.startswith(before) and whole.startswith(until)):
            raise DataError(
                f"{row.origin}: the chat template rewrites earlier turns, so that turn "
                f"{index} cannot be marked in the whole conversation; give one row for each answer"
            )
        _supervise_turn(
            input_ids, labels, encoded["offset_mapping"], (len(before), len(until)), tokenizer, row
        )
    return input_ids, labels


def _supervise_turn(
    input_ids: Sequence[int],
    labels: list[int],
    offsets: Sequence[tuple[int, int]],
    span: tuple[int, int],
    tokenizer: PreTrainedTokenizerBase,
    row: Row,
) -> None:
    """Label the tokens of one turn, up to and with the special token that ends it."""
    start, end = span
    special = special_token_ids(tokenizer)
    for position, (first, last) in enumerate(offsets):
        if first < start or last > end:
            continue
        labels[position] = input_ids[position]
        if input_ids[position] in special:
            return
    raise DataError(
        f"{row.origin}: the chat template ends the assistant's turn without a special token; "
        "the model could not learn when to stop"
    )


def _completion(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    roles = [message.role for message in row.messages]
    if roles != ["user", "assistant"]:
        raise DataError(
            f"{row.origin}: this backbone has no chat template, so a row has one prompt and one "
            f"completion; found the turns {', '.join(roles)}"
        )
    prompt, completion = (message.content for message in row.messages)
    prompt = _plain_prompt([prompt])
    encoded = tokenizer(prompt + completion, return_offsets_mapping=True)
    input_ids = [*encoded["input_ids"], tokenizer.eos_token_id]
    start = len(prompt)
    labels = [
        token if last > start else IGNORED
        for token, (_, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    return input_ids, [*labels, tokenizer.eos_token_id]


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the tokens that text cannot be written with, the added ones of a template included."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends the assistant's turn, on which generation has to stop.

    Raises:
        DataError: if the chat template has none.
    """
    probe = Row("chat template", "", (Message("user", "a"), Message("assistant", "b")))
    labels = tokenize(probe, tokenizer, max_length=1 << 20).labels
    return labels[-1]


def _refuse_control_tokens(row: Row, tokenizer: PreTrainedTokenizerBase) -> None:
    # Written out in a row, they would end turns or begin new ones.
    special = [str(tokenizer.convert_ids_to_tokens(i)) for i in special_token_ids(tokenizer)]
    for message in row.messages:
        found = [token for token in special if token and token in message.content]
        if found:
            raise DataError(
                f"{row.origin}: the text holds the control token {found[0]}, which would be read "
                "as the end or the start of a turn; remove it or write it otherwise"
            )
