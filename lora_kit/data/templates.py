"""Conversations as text: what the chat template writes, and what it cannot carry."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from lora_kit.data.rows import Message, Row
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THOUGHTS = "<think>"
# What templates that write the day take for today: the same rows have to give the same tokens
# tomorrow, in an evaluation, and after a training has gone on.
TODAY = date(2025, 1, 1)
DATE_FORMS = ("%Y", "%y", "%m", "%d", "%B", "%b", "%A", "%a", "%H", "%M", "%S")


def render(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] = (),
    thinking: bool = False,
) -> str:
    """The conversation as the chat template writes it.

    Args:
        messages: at least one.
        tokenizer: with a chat template.
        add_generation_prompt: whether the assistant's next turn is begun.
        tools: JSON schemas of what the assistant can call.
        thinking: whether that turn may begin with thoughts; other templates ignore it.
    """
    text = tokenizer.apply_chat_template(
        [_as_dict(message) for message in messages],
        tools=list(tools) or None,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=thinking,
        chat_template=_dated(str(tokenizer.chat_template)),
        date_string=TODAY.strftime("%d %b %Y"),
    )
    return str(text)


def _dated(template: str) -> str:
    """The template, with `TODAY` for the day that it asks for.

    A function cannot be handed to a template: transformers makes plain data of what it is given.
    """
    if "strftime_now" not in template:
        return template
    replaced = "".join(f" | replace('{form}', '{TODAY.strftime(form)}')" for form in DATE_FORMS)
    return "{%- macro strftime_now(form) -%}{{ form" + replaced + " }}{%- endmacro -%}" + template


def has_thoughts(message: Message) -> bool:
    """Whether a turn holds what the assistant thought before it spoke."""
    return THOUGHTS in message.content or any(
        name in ("reasoning_content", "reasoning", "thinking") for name, _ in message.extra
    )


def plain_prompt(contents: Sequence[str]) -> str:
    """A prompt for a backbone without chat template: the answer begins on a line of its own."""
    text = "\n".join(contents)
    return text if text[-1:].isspace() else f"{text}\n"


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the tokens that text cannot be written with, the added ones of a template included."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """What finds a special token that is written out in a text; `None` if there are none."""
    names = {str(tokenizer.convert_ids_to_tokens(i)) for i in special_token_ids(tokenizer)} - {""}
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first))) if names else None


def refuse_control_tokens(row: Row, control: re.Pattern[str] | None) -> None:
    """Refuse a row that would end turns or begin new ones.

    Raises:
        DataError: naming the token.
    """
    if control is None:
        return
    for message in row.messages:
        texts = [message.content]
        if message.tool_calls or message.extra:
            texts.append(json.dumps([message.tool_calls, message.extra], ensure_ascii=False))
        for text in texts:
            found = control.search(text)
            if found:
                raise DataError(
                    f"{row.origin}: the text holds the control token {found[0]}, which would be "
                    "read as the end or the start of a turn; remove it or write it otherwise"
                )


def refuse_unwritten(row: Row, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse tools that the chat template would leave out without a word.

    Raises:
        DataError: naming what it does not write.
    """
    wanted = {
        "tools": bool(row.tools),
        "tool_calls": any(message.tool_calls for message in row.messages),
    }
    if not any(wanted.values()):
        return
    template = tokenizer.get_chat_template(tools=list(row.tools) or None)
    for name, is_there in wanted.items():
        if is_there and name not in template:
            raise DataError(
                f"{row.origin}: the row has `{name}`, which this backbone's chat template does not "
                "write; take a backbone that was made for tools, or write them into the turns"
            )


def _as_dict(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [dict(call) for call in message.tool_calls]
    return turn | dict(message.extra)
