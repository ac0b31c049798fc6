"""Parts of a conversation that the chat template leaves out, found by sentinels in their place.

A template can skip a role or a field without an error, and the model then learns another
conversation than the row holds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from lora_kit.data.rows import Message, Row
from lora_kit.data.templates import REASONING_FIELDS, render
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Result of a check by structure of the conversation: turn and field of each part left out.
Missing = tuple[tuple[int, str], ...]


class UnwrittenParts:
    """Check of conversations against a chat template, once per structure of a conversation."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        """Start without known structures.

        Args:
            tokenizer: tokenizer with a chat template.
        """
        self.tokenizer = tokenizer
        self.known: dict[str, Missing] = {}

    def fields(self, row: Row) -> tuple[str, ...]:
        """Return the fields of turns that the template does not write, such as `name`.

        Raises:
            DataError: if the template leaves out the text, the reasoning or the tool calls of a
                turn.
        """
        structure = _structure(row)
        if structure not in self.known:
            self.known[structure] = self._missing(row)
        missing = self.known[structure]
        for turn, field in missing:
            if field in ("content", "tool_calls", *REASONING_FIELDS):
                raise DataError(
                    f"{row.origin}: the backbone's chat template does not write a part of this row "
                    f"(got `{field}` of turn {turn}, the {row.messages[turn].role}'s). Fix: remove "
                    "it, write it into the text of a turn, or use a backbone whose template "
                    "knows it"
                )
        return tuple(sorted({f"turns.{field}" for _, field in missing}))

    def _missing(self, row: Row) -> Missing:
        """Render the row with a sentinel in place of each text, and return what is not found."""
        marked, sentinels = _marked(row.messages)
        left = dict(sentinels)
        # Templates write reasoning only into the last turn; each turn is last in one of these.
        for end in range(len(marked), 0, -1):
            if not left:
                break
            try:
                text = render(marked[:end], self.tokenizer, False, row.tools)
            except (jinja2.TemplateError, ValueError, TypeError):
                if end == len(marked):
                    return ()  # the template checks its texts, and refuses the sentinels
                continue
            left = {sentinel: part for sentinel, part in left.items() if sentinel not in text}
        return tuple(sorted(set(left.values())))


def _structure(row: Row) -> str:
    """Return roles and fields of a conversation without their texts."""
    turns = [
        (m.role, bool(m.content), _blank(m.tool_calls), [(k, _blank(v)) for k, v in m.extra])
        for m in row.messages
    ]
    return json.dumps([turns, bool(row.tools)])


def _blank(value: Any) -> Any:
    return _replaced(value, iter(lambda: "", None))


def _marked(messages: Sequence[Message]) -> tuple[list[Message], dict[str, tuple[int, str]]]:
    """Return the turns with sentinels as texts, and turn and field of each sentinel."""
    marked, places = [], {}
    # Digits survive JSON, trimming and changes of case.
    numbers = iter(f"8{number:06d}3" for number in range(10**6))

    def mark(value: Any, turn: int, field: str) -> Any:
        used: list[str] = []

        def take() -> Iterator[str]:
            for number in numbers:
                used.append(number)
                yield number

        replaced = _replaced(value, take())
        places.update(dict.fromkeys(used, (turn, field)))
        return replaced

    for turn, message in enumerate(messages):
        calls = tuple(
            {**call, "function": mark(call["function"], turn, "tool_calls")}
            for call in message.tool_calls
        )
        extra = tuple((name, mark(value, turn, name)) for name, value in message.extra)
        content = mark(message.content, turn, "content") if message.content.strip() else ""
        marked.append(dataclasses.replace(message, content=content, tool_calls=calls, extra=extra))
    return marked, places


def _replaced(value: Any, texts: Iterator[str]) -> Any:
    """Return a JSON value with other texts in place of its own."""
    if isinstance(value, str):
        return next(texts)
    if isinstance(value, dict):
        return {key: _replaced(one, texts) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(one, texts) for one in value]
    return value
