"""One row of data, whatever place and format it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lora_kit.errors import DataError

Split = Literal["train", "validation", "test", "all"]
ROLES = ("system", "user", "assistant")
FORMATS = (
    '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}, '
    '{"prompt": "...", "completion": "..."} or {"text": "..."}'
)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """A conversation whose assistant turns are learned, or a text that is learned whole.

    Attributes:
        origin: where it came from, such as `chats.jsonl:12`, for messages to the user.
        cluster: rows of one cluster are not independent (same module, same document).
        messages: the conversation; empty for a text.
        text: the text; `None` for a conversation.
    """

    origin: str
    cluster: str
    messages: tuple[Message, ...] = ()
    text: str | None = None


def split_of(key: str, validation: float = 0.1, test: float = 0.1) -> Split:
    """The part that a cluster belongs to, by a hash of its name, the same on every machine."""
    number = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 0x1_0000_0000
    if number < test:
        return "test"
    return "validation" if number < test + validation else "train"


def parse_row(value: object, origin: str) -> Row:
    """Read one JSON row in a known format.

    Raises:
        DataError: if its format is unknown or a field is wrong, naming `origin`.
    """
    if not isinstance(value, dict):
        raise DataError(f"{origin}: an object is wanted, found {type(value).__name__}: {FORMATS}")
    keys = set(value)
    if "messages" in keys:
        return Row(origin, origin, messages=_messages(value["messages"], origin))
    if {"prompt", "completion"} <= keys:
        turns = (("user", "prompt"), ("assistant", "completion"))
        messages = tuple(Message(role, _text(value, key, origin)) for role, key in turns)
        return Row(origin, origin, messages=messages)
    if "text" in keys:
        return Row(origin, origin, text=_text(value, "text", origin))
    raise DataError(
        f"{origin}: no known format in the keys {', '.join(sorted(map(str, keys))) or '(none)'}; "
        f"possible: {FORMATS}"
    )


def _text(value: Mapping[str, object], key: str, origin: str) -> str:
    text = value[key]
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{origin}: `{key}` has to be a text that is not empty, found {text!r}")
    return text


def _messages(value: object, origin: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{origin}: `messages` has to be a list of turns, found {value!r:.60}")
    messages = []
    for index, turn in enumerate(value):
        place = f"{origin}: messages[{index}]"
        if not isinstance(turn, dict) or not {"role", "content"} <= set(turn):
            raise DataError(f"{place}: `role` and `content` are wanted, found {turn!r:.60}")
        if turn["role"] not in ROLES:
            raise DataError(f"{place}: role {turn['role']!r}; possible: {', '.join(ROLES)}")
        messages.append(Message(turn["role"], _text(turn, "content", place)))
    if messages[-1].role != "assistant":
        raise DataError(
            f"{origin}: the last turn is the {messages[-1].role}'s; it has to be the assistant's, "
            "whose words are what is learned"
        )
    return tuple(messages)
