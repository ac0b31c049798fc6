"""Row of data, independent of its source and format."""

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
        content: text of the turn; empty for an assistant turn with nothing but tool calls.
        tool_calls: tool calls of an assistant turn, in the form that chat templates expect.
        extra: other fields of the turn (`name`, `tool_call_id`, `reasoning_content`, ...),
            passed on to the chat template.
        trained: the turn's own switch: false to keep it out of training, true to train on it;
            `None` if the row leaves it to `data.train_on`.
    """

    role: str
    content: str
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    extra: tuple[tuple[str, Any], ...] = ()
    trained: bool | None = None


@dataclass(frozen=True)
class Row:
    """Conversation with supervised turns, or a fully supervised text.

    Attributes:
        origin: location of the row, such as `chats.jsonl:12`, for messages to the user.
        cluster: name of a group of dependent rows (same module, same document).
        messages: the conversation; empty for a text.
        text: the text; `None` for a conversation.
        tools: JSON schemas of the tools available to the assistant.
        completion_from: index of the first turn of the completion; `None` if the format does not
            mark one, so that the completion is the last turn.
        label: class of the row, for classification rows.
        values: numbers of the row by name, for regression rows.
        labels: labels of the row, sorted, for multi-label rows; there may be none.
        words: words of the text, for rows with tags.
        tags: BIO tag of each word.
        rejected: rejected answer of a preference pair, in place of the turns from
            `completion_from` on, or the negative of a triplet; empty for other rows.
        desirable: KTO label of the completion; `None` without one.
        format: detected or given format; empty for a row created in memory.
        unused: names of the columns that hold something and that the format does not read.
    """

    origin: str
    cluster: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    completion_from: int | None = None
    label: str | None = None
    values: Mapping[str, float] | None = None
    labels: tuple[str, ...] | None = None
    words: tuple[str, ...] = ()
    tags: tuple[str, ...] | None = None
    rejected: tuple[Message, ...] = ()
    desirable: bool | None = None
    format: str = ""
    unused: tuple[str, ...] = ()

    @property
    def prompt_turns(self) -> tuple[Message, ...]:
        """Turns before the answer; all of them if no answer follows."""
        is_answered = bool(self.messages) and self.messages[-1].role == "assistant"
        return self.messages[:-1] if is_answered else self.messages

    @property
    def target_text(self) -> str | None:
        """Target of a row that a head learns, as text; `None` for other rows."""
        is_other = self.values is None and self.labels is None and self.tags is None
        return self.label if is_other else self.messages[-1].content

    @property
    def has_answer(self) -> bool:
        """Return True if the row has a prompt and ends with an assistant turn."""
        return len(self.messages) > 1 and self.messages[-1].role == "assistant"


def assign_split(key: str, validation: float, test: float) -> Split:
    """Assign a cluster to a split by a hash of its name, the same on every machine.

    Args:
        key: cluster name.
        validation: fraction of the clusters in the validation split.
        test: fraction of the clusters in the test split.
    """
    number = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 0x1_0000_0000
    if number < test:
        return "test"
    return "validation" if number < test + validation else "train"
