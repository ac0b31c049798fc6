"""Parts of a conversation that the chat template leaves out, found by sentinels in their place.

A template can skip a role or a field without an error, and the model then learns another
conversation than the row holds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any

import jinja2

from lora_kit.data.rows import Message, Row
from lora_kit.data.templates import REASONING_FIELDS, render
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Parts of a turn that the model has to read or to learn.
TEXTS = ("content", "tool_calls")
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
        if not row.messages:
            return ()
        if not self.tokenizer.chat_template:
            return self._listed(row, _extra_fields(row))
        structure = _structure(row)
        if structure not in self.known:
            self.known[structure] = self._missing(row)
        return self._listed(row, self.known[structure])

    def _listed(self, row: Row, missing: Missing) -> tuple[str, ...]:
        for turn, field in missing:
            if field in (*TEXTS, *REASONING_FIELDS):
                raise DataError(
                    f"{row.origin}: the backbone's chat template does not write a part of this row "
                    f"(got `{field}` of turn {turn}, the {row.messages[turn].role}'s). Fix: remove "
                    "it, write it into the text of a turn, or use a backbone whose template "
                    "knows it"
                )
        return tuple(sorted({f"turns.{field}" for _, field in missing}))

    def _missing(self, row: Row) -> Missing:
        """Render the row with sentinels in place of its texts, and return what is not found."""
        template = str(self.tokenizer.chat_template)
        unnamed = {(turn, name) for turn, name in _extra_fields(row) if name not in template}
        for fields_too in (True, False):
            marked, left = _marked(row.messages, fields_too)
            # Texts have to be found in the conversation itself. Some templates write reasoning
            # only into the last turn, and each turn is last in one of the shorter conversations.
            text = self._rendered(marked, row)
            if text is None:
                continue  # the template checks a field, such as the length of an id
            left = {sentinel: part for sentinel, part in left.items() if sentinel not in text}
            for end in range(len(marked) - 1, 0, -1):
                shorter = self._rendered(marked[:end], row) or ""
                left = {
                    sentinel: (turn, field)
                    for sentinel, (turn, field) in left.items()
                    if field in TEXTS or sentinel not in shorter
                }
            return tuple(sorted({*left.values(), *unnamed}))
        return tuple(sorted(unnamed))

    def _rendered(self, messages: Sequence[Message], row: Row) -> str | None:
        try:
            return render(messages, self.tokenizer, False, row.tools)
        except (jinja2.TemplateError, ValueError, TypeError):
            return None


def _extra_fields(row: Row) -> Missing:
    """Return turn and name of the fields beside role, text and calls, such as switches."""
    return tuple((turn, name) for turn, m in enumerate(row.messages) for name, _ in m.extra)


def _structure(row: Row) -> str:
    """Return roles and fields of a conversation without their texts."""
    turns = [
        (m.role, bool(m.content), _blank(m.tool_calls), [(k, _blank(v)) for k, v in m.extra])
        for m in row.messages
    ]
    return json.dumps([turns, bool(row.tools)])


def _blank(value: Any) -> Any:
    return _replaced(value, repeat(""))


def _marked(
    messages: Sequence[Message], fields_too: bool
) -> tuple[list[Message], dict[str, tuple[int, str]]]:
    """Return the turns with sentinels as texts, and turn and field of each sentinel.

    Args:
        messages: turns of a conversation.
        fields_too: if false, tool calls and other fields keep their texts.
    """
    marked: list[Message] = []
    places: dict[str, tuple[int, str]] = {}

    def mark(value: Any, turn: int, field: str) -> Any:
        def sentinels() -> Iterator[str]:
            while True:
                # Digits survive JSON, trimming and changes of case.
                places[sentinel := f"8{len(places):06d}3"] = (turn, field)
                yield sentinel

        return _replaced(value, sentinels())

    for turn, message in enumerate(messages):
        content = mark(message.content, turn, "content") if message.content.strip() else ""
        changed = dataclasses.replace(message, content=content)
        if fields_too:
            calls = tuple(
                {**call, "function": mark(call["function"], turn, "tool_calls")}
                for call in message.tool_calls
            )
            extra = tuple((name, mark(value, turn, name)) for name, value in message.extra)
            changed = dataclasses.replace(changed, tool_calls=calls, extra=extra)
        marked.append(changed)
    return marked, places


def _replaced(value: Any, texts: Iterator[str]) -> Any:
    """Return a JSON value with other texts and numbers in place of its own."""
    if isinstance(value, str):
        return next(texts)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return type(value)(next(texts) or 0)
    if isinstance(value, dict):
        return {key: _replaced(one, texts) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(one, texts) for one in value]
    return value
