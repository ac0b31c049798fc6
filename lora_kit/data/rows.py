"""One row of data, whatever place and format it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "validation", "test", "all"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`.
        content: its words; empty where an assistant calls tools and says nothing.
        tool_calls: the tools that an assistant calls, as chat templates take them.
        extra: what else a turn has (`name`, `tool_call_id`, `reasoning_content`, ...), for the
            template.
    """

    role: str
    content: str
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    extra: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Row:
    """A conversation of which turns are learned, or a text that is learned whole.

    Attributes:
        origin: where it came from, such as `chats.jsonl:12`, for messages to the user.
        cluster: rows of one cluster are not independent (same module, same document).
        messages: the conversation; empty for a text.
        text: the text; `None` for a conversation.
        tools: JSON schemas of the tools that the assistant can call.
        completion_from: the first turn of what the row gives as completion; `None` where the
            format has none, and it is the last turn.
        label: its class, where the row is one of a classification.
        rejected: of a pair of preference, what stands in the place of the turns from
            `completion_from` on, and is the worse answer; else empty.
        desirable: whether the completion is a good one, where the row says so.
        format: what it was read as; empty for a row that was made here.
    """

    origin: str
    cluster: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    completion_from: int | None = None
    label: str | None = None
    rejected: tuple[Message, ...] = ()
    desirable: bool | None = None
    format: str = ""

    @property
    def answered(self) -> bool:
        """Whether it is a prompt and, as its last turn, the assistant's answer."""
        return len(self.messages) > 1 and self.messages[-1].role == "assistant"


def split_of(key: str, validation: float = 0.1, test: float = 0.1) -> Split:
    """The part that a cluster belongs to, by a hash of its name, the same on every machine."""
    number = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 0x1_0000_0000
    if number < test:
        return "test"
    return "validation" if number < test + validation else "train"
