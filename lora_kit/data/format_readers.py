"""Parsing of a raw row of each format.

Each function takes a raw row with the fields of its format and the row's location, and raises a
`DataError` that names the location if a field is malformed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from lora_kit.data.columns import RawRow
from lora_kit.data.entities import entities_of, parse_tags, parse_words, write_entities
from lora_kit.data.rows import Message, Row
from lora_kit.data.scored import SCORE, parse_number, parse_numbers, write_numbers
from lora_kit.data.tagged import parse_labels, write_labels
from lora_kit.data.turns import read_conversations, read_messages, read_text, read_tools
from lora_kit.runtime.errors import DataError


def messages_row(value: RawRow, origin: str) -> Row:
    """Parse a conversation in the format of OpenAI."""
    messages = _with_system(read_messages(value["messages"], "messages", origin), value, origin)
    return Row(origin, origin, messages, tools=read_tools(value.get("tools"), origin))


def sharegpt_row(value: RawRow, origin: str) -> Row:
    """Parse a conversation in the format of ShareGPT."""
    messages = read_conversations(value["conversations"], "conversations", origin)
    messages = _with_system(messages, value, origin)
    return Row(origin, origin, messages, tools=read_tools(value.get("tools"), origin))


def prompt_completion_row(value: RawRow, origin: str) -> Row:
    """Parse a prompt and its completion, each a text or a list of turns."""
    prompt = _turns(value["prompt"], "prompt", "user", origin)
    completion = _turns(value["completion"], "completion", "assistant", origin)
    if len(completion) > len(prompt) and completion[: len(prompt)] == prompt:
        # Some data sets, such as UltraFeedback, repeat the prompt in the answer.
        completion = completion[len(prompt) :]
    prompt = _with_system(prompt, value, origin)
    return Row(
        origin,
        origin,
        prompt + completion,
        tools=read_tools(value.get("tools"), origin),
        completion_from=len(prompt),
        desirable=_parse_desirable(value.get("label")),
    )


def _parse_desirable(label: object) -> bool | None:
    """Return the KTO label of a completion; `None` for any other column called `label`."""
    if isinstance(label, bool | int | float):
        return bool(label) if label in (0, 1) else None
    # A CSV file holds text only.
    texts = {"true": True, "false": False, "1": True, "0": False}
    return texts.get(label.lower()) if isinstance(label, str) else None


def alpaca_row(value: RawRow, origin: str) -> Row:
    """Parse an instruction with its output, and the exchanges before it."""
    prompt = read_text(value["instruction"], "instruction", origin)
    context = value.get("input")
    if context is not None and str(context).strip():
        prompt = f"{prompt}\n\n{read_text(context, 'input', origin)}"
    answer = read_text(value["output"], "output", origin)
    earlier = _history(value.get("history"), origin)
    turns = (*earlier, Message("user", prompt), Message("assistant", answer))
    messages = _with_system(turns, value, origin)
    return Row(origin, origin, messages, completion_from=len(messages) - 1)


def _history(value: object, origin: str) -> tuple[Message, ...]:
    """Read the earlier turns of an Alpaca row: a list of pairs of question and answer."""
    if value in (None, "", []):
        return ()
    pairs = value if isinstance(value, list) else [value]
    turns: list[Message] = []
    for number, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(
                f"{origin}: history[{number}]: not a question and its answer (got {pair!r:.60}). "
                'Fix: write [["question", "answer"], ...]'
            )
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append(Message(role, read_text(text, f"history[{number}]", origin)))
    return tuple(turns)


def text_label_row(value: RawRow, origin: str) -> Row:
    """Parse a text, its class, and the name of a group of dependent rows, if it has one."""
    label = value["label"]
    if isinstance(label, bool | int):
        label = json.dumps(label)
    label = read_text(label, "label", origin)
    text = read_text(value["text"], "text", origin)
    messages = (Message("user", text), Message("assistant", label))
    return Row(origin, _cluster(value, origin), messages, completion_from=1, label=label)


def _cluster(value: RawRow, origin: str) -> str:
    """Return the name of a row's group of dependent rows; its origin if it has none."""
    cluster = value.get("cluster", origin)
    if isinstance(cluster, int) and not isinstance(cluster, bool):
        cluster = str(cluster)
    return read_text(cluster, "cluster", origin)


def pair_row(value: RawRow, origin: str) -> Row:
    """Parse a text and another one that belongs to it, such as a question and its passage.

    Raises:
        DataError: if one of them is empty, or both are the same.
    """
    anchor, positive = (read_text(value[name], name, origin) for name in ("anchor", "positive"))
    if anchor.split() == positive.split():
        raise DataError(
            f"{origin}: positive: the same text as the anchor, from which nothing is learned (got "
            f"{positive!r:.60}). Fix: correct or remove the row"
        )
    messages = (Message("user", anchor), Message("assistant", positive))
    return Row(origin, _cluster(value, origin), messages, completion_from=1)


def triplet_row(value: RawRow, origin: str) -> Row:
    """Parse a pair and a text that does not belong to it.

    Raises:
        DataError: if a text is empty, or the negative is one of the others.
    """
    row, negative = pair_row(value, origin), read_text(value["negative"], "negative", origin)
    for name, message in zip(("anchor", "positive"), row.messages, strict=True):
        if negative.split() == message.content.split():
            raise DataError(
                f"{origin}: negative: the same text as the {name} (got {negative!r:.60}). Fix: "
                "correct the row, or remove the column negative from it"
            )
    return dataclasses.replace(row, rejected=(Message("assistant", negative),))


def text_score_row(value: RawRow, origin: str) -> Row:
    """Parse a text and its number."""
    return _scored_row(value, {SCORE: parse_number(value["score"], "score", origin)}, origin)


def text_scores_row(value: RawRow, origin: str) -> Row:
    """Parse a text and its numbers."""
    return _scored_row(value, parse_numbers(value["scores"], "scores", origin), origin)


def _scored_row(value: RawRow, numbers: Mapping[str, float], origin: str) -> Row:
    text = read_text(value["text"], "text", origin)
    messages = (Message("user", text), Message("assistant", write_numbers(numbers)))
    return Row(origin, origin, messages, completion_from=1, values=numbers)


def text_labels_row(value: RawRow, origin: str) -> Row:
    """Parse a text and its labels."""
    labels = parse_labels(value["labels"], origin)
    text = read_text(value["text"], "text", origin)
    messages = (Message("user", text), Message("assistant", write_labels(labels)))
    return Row(origin, origin, messages, completion_from=1, labels=labels)


def tokens_tags_row(value: RawRow, origin: str) -> Row:
    """Parse words, their tags, and the name of a group of dependent rows, if it has one."""
    words = parse_words(value["tokens"], origin)
    tags = parse_tags(value["tags"], words, origin)
    answer = write_entities(entities_of(tags), words)
    messages = (Message("user", " ".join(words)), Message("assistant", answer))
    return Row(origin, _cluster(value, origin), messages, completion_from=1, words=words, tags=tags)


def text_row(value: RawRow, origin: str) -> Row:
    """Parse a text."""
    return Row(origin, origin, text=read_text(value["text"], "text", origin))


def preference_row(value: RawRow, origin: str) -> Row:
    """Parse a prompt with a chosen and a rejected answer."""
    chosen = _turns(value["chosen"], "chosen", "assistant", origin)
    rejected = _turns(value["rejected"], "rejected", "assistant", origin)
    if "prompt" in value:
        prompt = _turns(value["prompt"], "prompt", "user", origin)
    else:
        # Some data sets, such as Anthropic's, give two conversations with a common prefix.
        equal = [one == other for one, other in zip(chosen, rejected, strict=False)]
        prompt = chosen[: (*equal, False).index(False)]
    # Some data sets, such as UltraFeedback, repeat the prompt in the answers.
    chosen, rejected = (
        turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
        for turns in (chosen, rejected)
    )
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if [message.role for message in turns] != ["assistant"]:
            roles = ", ".join(message.role for message in turns) or "none"
            raise DataError(
                f"{origin}: `{name}` must be one assistant turn after the shared prompt (got the "
                f"turns: {roles}). Fix: give the shared turns as `prompt`"
            )
    if not prompt:
        raise DataError(
            f"{origin}: `chosen` and `rejected` share no prompt. Fix: add the field `prompt`"
        )
    prompt = _with_system(prompt, value, origin)
    if chosen == rejected:
        raise DataError(
            f"{origin}: `chosen` and `rejected` are the same (got {chosen[0].content!r:.60} twice)."
            " Fix: remove the row"
        )
    return Row(
        origin, origin, prompt + chosen, completion_from=len(prompt), rejected=tuple(rejected)
    )


def _turns(value: object, field: str, role: str, origin: str) -> tuple[Message, ...]:
    """Read a text as one turn, or a list of turns (the conversational form of TRL)."""
    if isinstance(value, list):
        return read_messages(value, field, origin)
    return (Message(role, read_text(value, field, origin)),)


def _with_system(turns: tuple[Message, ...], value: RawRow, origin: str) -> tuple[Message, ...]:
    """Put the text of the column `system` before the turns."""
    system = value.get("system")
    if system is None or system == "":
        return turns
    first = Message("system", read_text(system, "system", origin))
    if not turns or turns[0].role != "system":
        return (first, *turns)
    if turns[0].content != first.content:
        raise DataError(
            f"{origin}: the column `system` and the first turn are two system texts (got "
            f"{first.content!r:.40} and {turns[0].content!r:.40}). Fix: keep one of them"
        )
    return turns
