"""Conversations rendered with a chat template, and checks of the template's limits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

import jinja2

from lora_kit.backbone.chat_template import render_chat
from lora_kit.data.rows import Message, Row
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REASONING_TAG, REASONING_END = "<think>", "</think>"
# Fields of a turn that hold the assistant's reasoning.
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
# Date for templates that write the current day: the same rows must give the same tokens on any
# day, in training, evaluation and after resuming.
FIXED_DATE = date(2025, 1, 1)
DATE_FORMS = tuple(
    f"%{flag}{letter}"
    # Flags of the C library first, since `%-d` holds no `%d`.
    for flag in ("-", "_", "0", "^", "#", "")
    for letter in "aAbBcCdDeFgGhHIjklmMpPrRSTuUVwWxXyYzZ"
)


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

    def rendered(arguments_as_text: bool) -> str:
        return render_chat(
            tokenizer,
            [_as_dict(message, arguments_as_text) for message in messages],
            tools=list(tools) or None,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=thinking,
            # One of several templates may be that for tools.
            chat_template=_with_fixed_date(tokenizer.get_chat_template(tools=list(tools) or None)),
            date_string=FIXED_DATE.strftime("%d %b %Y"),
        )

    try:
        return rendered(arguments_as_text=False)
    except jinja2.TemplateError:
        if not any(message.tool_calls for message in messages):
            raise
        # Some templates, such as DeepSeek's, join the arguments to a text.
        return rendered(arguments_as_text=True)


def require_written(
    messages: Sequence[Message], text: str, until: Callable[[int], str], origin: str
) -> None:
    """Refuse a rendered conversation that lacks the text of a turn, or has it changed.

    Templates can cut, escape or drop texts, such as all up to a tag of reasoning. An earlier answer
    may lack its reasoning where the template writes it only as long as the answer is the last turn.

    Args:
        messages: turns of the conversation.
        text: the rendered conversation.
        until: function that renders the turns up to the one of a number.
        origin: location of the row.

    Raises:
        DataError: if a text cannot be found; the message names the turn.
    """
    for turn, message in enumerate(messages):
        content = message.content
        if _holds(text, content):
            continue
        if turn + 1 == len(messages) or not _holds(until(turn), content):
            raise DataError(
                f"{origin}: the backbone's chat template changes the text of turn {turn}, the "
                f"{message.role}'s, or leaves out a part of it (got {content!r:.60}). Fix: change "
                "the text, or use a backbone whose template writes it as it is"
            )


def template_refusal(origin: str, turns: str, error: Exception) -> DataError:
    """Return the error for turns that a chat template cannot render.

    Args:
        origin: location of the row.
        turns: the turns, in words.
        error: error of the template: one that it raises itself, or a mistake in it.
    """
    if isinstance(error, jinja2.TemplateRuntimeError):
        return DataError(
            f"{origin}: backbone.model: its chat template fails on {turns} ({error}). Fix: correct "
            "the template in a copy of the model, or use another backbone"
        )
    return DataError(
        f"{origin}: the chat template rejects {turns} ({error}). Fix: change the turns, or use a "
        "backbone with another chat template"
    )


def _holds(text: str, content: str) -> bool:
    """Return True if a text has the content, perhaps in JSON; white space at its ends is free."""
    content = content.strip()
    if content in text or json.dumps(content, ensure_ascii=False)[1:-1] in text:
        return True
    # Templates that know the tags of reasoning write them with white space of their own.
    return REASONING_END in content and "".join(content.split()) in "".join(text.split())


def _with_fixed_date(template: str) -> str:
    """Override `strftime_now` in a template so that it formats `FIXED_DATE`.

    A macro is used because a function cannot be passed in: transformers converts template
    variables to plain data.
    """
    if "strftime_now" not in template:
        return template
    replaced = "".join(
        f" | replace('{form}', '{FIXED_DATE.strftime(form)}')"
        for form in DATE_FORMS
        if form in template
    )
    # The name of the argument is that in transformers.
    macro = "{%- macro strftime_now(format) -%}{{ format" + replaced + " }}{%- endmacro -%}"
    return macro + template


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
    texts = [json.dumps(row.tools, ensure_ascii=False)] if row.tools else []
    for message in row.messages:
        texts.append(message.content)
        if message.tool_calls or message.extra:
            texts.append(json.dumps([message.tool_calls, message.extra], ensure_ascii=False))
    for text in texts:
        match = control.search(text)
        if match:
            raise DataError(
                f"{row.origin}: the text contains a control token, which would end or start a "
                f"turn (got {match[0]}). Fix: remove it, or write it differently"
            )


def supports_tools(tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if the chat template writes tools."""
    if not tokenizer.chat_template:
        return False
    return "tools" in str(tokenizer.get_chat_template(tools=list(tools)))


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


def _as_dict(message: Message, arguments_as_text: bool = False) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            _call_with_text(call) if arguments_as_text else dict(call)
            for call in message.tool_calls
        ]
    return turn | dict(message.extra)


def _call_with_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}
