"""Conversations rendered with a chat template, and checks of the template's limits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from lora_kit.backbone.chat_template import render_chat
from lora_kit.data.rows import Message, Row
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REASONING_TAG = "<think>"
# Fields of a turn that hold the assistant's reasoning.
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
# Date for templates that write the current day: the same rows must give the same tokens on any
# day, in training, evaluation and after resuming.
FIXED_DATE = date(2025, 1, 1)
DATE_FORMS = ("%Y", "%y", "%m", "%d", "%B", "%b", "%A", "%a", "%H", "%M", "%S")


def render(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] = (),
    thinking: bool = False,
) -> str:
    """Render a conversation with the chat template.

    Args:
        messages: at least one message.
        tokenizer: tokenizer with a chat template.
        add_generation_prompt: if true, append the start of the assistant's next turn.
        tools: JSON schemas of the tools available to the assistant.
        thinking: if true, the appended turn may start with reasoning; templates without this
            option ignore it.

    Raises:
        BackboneError: if the template takes too long, or writes too much.
        jinja2.TemplateError: if the template fails in another way.
        ValueError: if transformers refuses the conversation.
    """
    return render_chat(
        tokenizer,
        [_as_dict(message) for message in messages],
        tools=list(tools) or None,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=thinking,
        # One of several templates may be that for tools.
        chat_template=_with_fixed_date(tokenizer.get_chat_template(tools=list(tools) or None)),
        date_string=FIXED_DATE.strftime("%d %b %Y"),
    )


def _with_fixed_date(template: str) -> str:
    """Override `strftime_now` in a template so that it formats `FIXED_DATE`.

    A macro is used because a function cannot be passed in: transformers converts template
    variables to plain data.
    """
    if "strftime_now" not in template:
        return template
    replaced = "".join(
        f" | replace('{form}', '{FIXED_DATE.strftime(form)}')" for form in DATE_FORMS
    )
    return "{%- macro strftime_now(form) -%}{{ form" + replaced + " }}{%- endmacro -%}" + template


def has_reasoning(message: Message) -> bool:
    """Return True if a turn contains the assistant's reasoning."""
    return REASONING_TAG in message.content or any(
        name in REASONING_FIELDS for name, _ in message.extra
    )


def appended_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids that a tokenizer appends to each text by itself, such as an end token."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    starts = range(len(ids) - len(bare) + 1)
    ends = [start + len(bare) for start in starts if ids[start : start + len(bare)] == bare]
    return tuple(ids[ends[-1] :]) if ends else ()


def plain_prompt(contents: Sequence[str]) -> str:
    """Return a prompt for a backbone without a chat template, ending with white space.

    The answer starts on a line of its own, unless the prompt already ends with white space.
    """
    text = "\n".join(contents)
    return text if text[-1:].isspace() else f"{text}\n"


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of all special tokens, including added ones that chat templates use."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Return a pattern that matches special tokens in a text; `None` without special tokens."""
    names = {str(tokenizer.convert_ids_to_tokens(i)) for i in special_token_ids(tokenizer)} - {""}
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first))) if names else None


def refuse_control_tokens(row: Row, control: re.Pattern[str] | None) -> None:
    """Refuse a row whose text contains special tokens, which would end or start turns.

    Args:
        row: the row.
        control: pattern of `control_tokens`.

    Raises:
        DataError: if the row contains a special token; the message names it.
    """
    if control is None:
        return
    for message in row.messages:
        texts = [message.content]
        if message.tool_calls or message.extra:
            texts.append(json.dumps([message.tool_calls, message.extra], ensure_ascii=False))
        for text in texts:
            match = control.search(text)
            if match:
                raise DataError(
                    f"{row.origin}: the text contains a control token, which would end or start a "
                    f"turn (got {match[0]}). Fix: remove it, or write it differently"
                )


def refuse_unsupported_tools(row: Row, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse tools and tool calls that the chat template would silently drop.

    Raises:
        DataError: if the template does not support a field that the row has.
    """
    used = {
        "tools": bool(row.tools),
        "tool_calls": any(message.tool_calls for message in row.messages),
    }
    if not any(used.values()):
        return
    template = tokenizer.get_chat_template(tools=list(row.tools) or None)
    for name, is_used in used.items():
        if is_used and name not in template:
            raise DataError(
                f"{row.origin}: the backbone's chat template does not support a field of this row "
                f"(got `{name}`). Fix: use a backbone with tool support, or write the tools into "
                "the turns"
            )


def _as_dict(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [dict(call) for call in message.tool_calls]
    return turn | dict(message.extra)
