"""Rendering of chat templates: programs of strangers, run under limits of time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jinja2

from lora_kit.runtime.errors import BackboneError, first_line
from lora_kit.runtime.limits import TooSlowError, within_limits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The longest conversations take milliseconds, and megabytes.
SECONDS = 5
MORE_BYTES = 2**30
# Characters that a template may write besides this many for each of the conversation.
OWN_CHARACTERS = 1_000_000
REPEATED = 100


def render_chat(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping[str, Any]], **options: Any
) -> str:
    """Render a conversation with the tokenizer's chat template.

    Args:
        tokenizer: tokenizer with a chat template.
        turns: at least one turn.
        options: further options of `apply_chat_template`, such as variables of the template.

    Raises:
        BackboneError: if the template takes too long, or writes too much.
        jinja2.TemplateError: if the template fails in another way, whatever it raises.
        ValueError: if transformers refuses the conversation.
    """
    render = partial(tokenizer.apply_chat_template, list(turns), tokenize=False, **options)
    name = f"{tokenizer.name_or_path}: the chat template"
    remedy = "Fix: choose another backbone, or correct the template"
    try:
        text = str(within_limits(render, SECONDS, MORE_BYTES))
    except TooSlowError as error:
        raise BackboneError(f"{name} does not end (got {error} for one row). {remedy}") from error
    except MemoryError as error:
        raise BackboneError(
            f"{name} takes too much memory (got more than {MORE_BYTES:,} bytes for one row). "
            f"{remedy}"
        ) from error
    except (jinja2.TemplateError, ValueError):
        raise
    # Templates can raise anything: 1 / 0, a missing argument, a recursion, a file to include.
    except Exception as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise jinja2.TemplateRuntimeError(problem) from error
    if len(text) > OWN_CHARACTERS:
        given = len(repr(turns)) + len(repr(options.get("tools") or ""))
        if len(text) > OWN_CHARACTERS + REPEATED * given:
            raise BackboneError(
                f"{name} writes too much (got {len(text):,} characters for a row of {given:,}). "
                f"{remedy}"
            )
    return text


def require_valid_template(template: str, place: str) -> None:
    """Refuse a chat template with a mistake in its language.

    Args:
        template: Jinja template.
        place: field and model, for the message.

    Raises:
        BackboneError: naming the line.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        within_limits(lambda: _compile_jinja_template(template), SECONDS, MORE_BYTES)
    except jinja2.TemplateSyntaxError as error:
        raise BackboneError(
            f"{place}: line {error.lineno} of its chat template is no Jinja (got "
            f"{first_line(error)}). Fix: correct chat_template.jinja, or chat_template in a copy's "
            "tokenizer_config.json"
        ) from error
    except Exception:
        # Too large or too deep to be compiled: `render_chat` says so where it is used, and a model
        # that is trained on texts uses none.
        return
