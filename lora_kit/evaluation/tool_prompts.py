"""Prompts with tools: given to the chat template, or in words where it knows no tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_kit.data.rows import Message
from lora_kit.data.templates import supports_tools
from lora_kit.data.tokenization import tokenize_prompt
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INTRODUCTION = "You can call these functions. Each line describes one, with its JSON Schema:"
FORM_OF_A_CALL = (
    "To call a function, answer with one JSON object and nothing else: "
    '{"name": "NAME OF THE FUNCTION", "arguments": {"ARGUMENT": VALUE}}. To call several, answer '
    "with a JSON list of such objects. If no function is needed, or a required argument is not "
    "known, answer in words."
)


def prompt_with_tools(
    prompt: str,
    tools: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    has_shots: bool = False,
) -> tuple[list[Message], Sequence[Mapping[str, Any]]]:
    """Return the turns of a prompt, and the tools that the chat template is given.

    A template that knows no tools gets them in a system turn; one without a system turn, or a
    prompt with solved examples before it, in the user's turn.

    Args:
        prompt: the user's request.
        tools: functions, in OpenAI's form.
        tokenizer: tokenizer of the backbone.
        has_shots: true if turns of other conversations come before the prompt.
    """
    user = [Message("user", prompt)]
    if not tools or supports_tools(tokenizer, tools):
        return user, tools
    system = describe_tools(tools)
    turns = [Message("system", system), *user]
    if not has_shots and _accepts(turns, tokenizer):
        return turns, ()
    return [Message("user", f"{system}\n\n{prompt}")], ()


def describe_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    """Return the tools in words, with the form of a call."""
    functions = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    return "\n".join([INTRODUCTION, *functions, "", FORM_OF_A_CALL])


def _accepts(turns: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        tokenize_prompt(turns, tokenizer)
    except DataError:
        return False
    return True
