"""Chat templates: what they write is what transformers writes, within limits."""

import copy
from typing import Any

import jinja2
import pytest

from lora_kit.backbone import chat_template
from lora_kit.backbone.chat_template import render_chat
from lora_kit.data.rows import Message
from lora_kit.data.templates import render
from lora_kit.runtime.errors import BackboneError

TURNS = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Red."}]


def with_template(tokenizer: Any, template: Any) -> Any:
    changed = copy.copy(tokenizer)
    changed.chat_template = template
    return changed


def test_a_template_writes_what_it_writes_in_transformers(tokenizer: Any) -> None:
    assert render_chat(tokenizer, TURNS) == tokenizer.apply_chat_template(TURNS, tokenize=False)


def test_a_template_for_tools_is_used_for_rows_with_tools(tokenizer: Any) -> None:
    several = with_template(tokenizer, {"default": "plain", "tool_use": "{{ tools|length }}"})
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert render([Message("user", "a")], several, False) == "plain"
    assert render([Message("user", "a")], several, False, tools=[tool]) == "1"


@pytest.mark.parametrize("error", ["1 / 0", "[].pop.x()", "raise_exception('no')", "a + b"])
def test_errors_of_a_template_are_template_errors(tokenizer: Any, error: str) -> None:
    with pytest.raises(jinja2.TemplateError):
        render_chat(with_template(tokenizer, f"{{{{ {error} }}}}"), TURNS)


def test_long_conversations_are_no_long_templates(tokenizer: Any) -> None:
    long = [{"role": "user", "content": "Red. " * 10**6}]
    assert len(render_chat(tokenizer, long)) > 5 * 10**6


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "end"),
        ("{{ 'a' * 10**11 }}", "memory"),
        ("{{ 'a' * 2 * 10**6 }}", "writes too much"),
        ("{{ ('a' * 10**6)|wordwrap(1) }}", "end"),
    ],
)
def test_a_template_beyond_the_limits_is_refused(
    tokenizer: Any, template: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.2)
    with pytest.raises(BackboneError, match=f"chat template.*{problem}"):
        render_chat(with_template(tokenizer, template), TURNS)
