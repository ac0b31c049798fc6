"""Modelfiles for Ollama: templates that write what the chat template writes."""

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_kit.data.rows import Message
from lora_kit.data.templates import render
from lora_kit.merging.exporting.go_template import expand, literal
from lora_kit.merging.exporting.modelfile import build_modelfile, modelfile_of, ollama_template
from tests.families import FAMILIES, family_tokenizer

QUESTION = {"role": "user", "content": "Which ones?"}
ANSWER = {"role": "assistant", "content": 'Both:\n\n- `{{a}}`\n- "b"'}
NEXT = {"role": "user", "content": "{% why %} ...?"}
SYSTEM = {"role": "system", "content": 'Say """no""".'}
CHATS = [
    [QUESTION],
    [QUESTION, ANSWER, NEXT],
    [QUESTION, ANSWER, NEXT, ANSWER, QUESTION],
    [SYSTEM, QUESTION],
    [SYSTEM, QUESTION, ANSWER, NEXT],
]
# As Mistral writes it since v0.3: the system text belongs to the last question.
MISTRAL_V3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set told = messages[0].content %}"
    "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m.role == 'user' %}[INST] "
    "{{ told + '\n\n' if loop.last and told is defined }}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
# As Llama 2 writes it: a start token before each question.
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set told = messages[0].content %}"
    "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and told is defined %}<<SYS>>\n{{ told }}\n<</SYS>>\n\n{% endif %}"
    "{{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)


def with_template(tokenizer: Any, template: str) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def rendered(tokenizer: Any, turns: Sequence[dict[str, str]]) -> str:
    return render([Message(turn["role"], turn["content"]) for turn in turns], tokenizer, True)


def require_same(tokenizer: Any, added: str = "") -> list[str]:
    """Compare with the chat template, but for the system text where that refuses or drops it."""
    template, warnings = ollama_template(tokenizer, added)
    assert template
    for turns in CHATS:
        assert added + expand(template, turns) == rendered(tokenizer, turns)
    return warnings


def test_the_default_system_text_is_written_where_none_is_given(tokenizer: Any) -> None:
    assert require_same(tokenizer) == []
    template, _ = ollama_template(tokenizer, "")
    assert "named SmolLM" in expand(template, [QUESTION])
    assert "named SmolLM" not in expand(template, [SYSTEM, QUESTION])


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_is_written_as_its_template_writes_it(name: str, tokenizer: Any) -> None:
    warnings = " ".join(require_same(family_tokenizer(tokenizer, name)))
    assert ("strips white space" in warnings) == (name in ("llama-3", "gemma"))
    assert ("does not write a system text" in warnings) == (name == "mistral")
    assert ("begin without reasoning" in warnings) == (name == "qwen-3")


@pytest.mark.parametrize("template", [MISTRAL_V3, LLAMA_2], ids=["mistral v0.3", "llama 2"])
@pytest.mark.parametrize("adds_start", [False, True])
def test_a_system_text_inside_a_question_stays_there(
    template: str, adds_start: bool, tokenizer: Any
) -> None:
    changed = with_template(tokenizer, template)
    assert require_same(changed, changed.bos_token if adds_start else "") == []


@pytest.mark.parametrize(("name", "start"), [("llama-3", "<|begin_of_text|>"), ("gemma", "<bos>")])
def test_a_start_token_that_the_file_adds_is_not_written_twice(
    name: str, start: str, tokenizer: Any
) -> None:
    family = family_tokenizer(tokenizer, name)
    require_same(family, start)
    assert start not in ollama_template(family, start)[0]
    assert start in ollama_template(family, "")[0]


def test_a_start_token_that_only_the_file_adds_is_said(tokenizer: Any) -> None:
    template, warnings = ollama_template(family_tokenizer(tokenizer, "chatml"), "<s>")
    assert template.startswith("{{ if .System }}")
    assert "begins prompts with <s>" in " ".join(warnings)


def test_a_system_text_that_is_refused_is_left_out_and_said(tokenizer: Any) -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    changed = with_template(tokenizer, refusing + FAMILIES["zephyr"].template)
    template, warnings = ollama_template(changed, "")
    assert expand(template, [SYSTEM, QUESTION]) == rendered(changed, [QUESTION])
    assert "refuses a system text" in " ".join(warnings)


def test_a_date_is_that_of_training_and_is_said(tokenizer: Any) -> None:
    dated = "Today: {{ strftime_now('%d %b %Y') }}\n" + FAMILIES["chatml"].template
    template, warnings = ollama_template(with_template(tokenizer, dated), "")
    assert template.startswith("{{ if .System }}Today: 01 Jan 2025\n")
    assert "writes a date" in " ".join(warnings)


@pytest.mark.parametrize(
    "template",
    [
        # The number of a turn, the length of a text, capitals.
        "{% for m in messages %}{{ loop.index }}. {{ m.role }}: {{ m.content }}\n{% endfor %}",
        "{% for m in messages %}{{ m.content | length }} {{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}",
        "{% for m in messages %}{{ m.content | replace('\"', '&quot;') }}\n{% endfor %}",
    ],
)
def test_a_template_that_ollama_cannot_write_is_left_out_and_said(
    template: str, tokenizer: Any, tmp_path: Path
) -> None:
    changed = with_template(tokenizer, template)
    found = build_modelfile(tmp_path, changed, "a.gguf", False)
    assert "TEMPLATE" not in found.text
    assert "a template of Ollama cannot" in found.warnings[0]


def parsed(text: str) -> tuple[dict[str, str], list[str]]:
    """Read a Modelfile as Ollama does: a value in three quotes ends at the next three."""
    stops = re.findall(r'^PARAMETER stop "(.*)"$', text, re.MULTILINE)
    (source,) = re.findall(r"^FROM (.*)$", text, re.MULTILINE)
    template = re.findall(r'^TEMPLATE """(.*?)"""$', text, re.MULTILINE | re.DOTALL)
    return {"FROM": source, **({"TEMPLATE": template[0]} if template else {})}, stops


def test_quotes_braces_and_invisible_characters_of_a_template_are_escaped(
    tokenizer: Any, tmp_path: Path
) -> None:
    odd = 'Say """{{x}}""" \\ {"a": "b\u200b"}\n"""\n'
    template = "{{ '" + odd.replace("\\", "\\\\").replace("\n", "\\n") + "' }}"
    changed = with_template(tokenizer, template + FAMILIES["chatml"].template)
    found = build_modelfile(tmp_path, changed, "a.gguf", False)
    fields, _ = parsed(found.text)
    assert '"""' not in fields["TEMPLATE"]
    assert all(char.isprintable() or char == "\n" for char in found.text)
    for turns in CHATS:
        assert expand(fields["TEMPLATE"], turns) == rendered(changed, turns)


@pytest.mark.parametrize("text", ['"', '""""', "{", "{{ end }}", "a}}b", "\\", "\r\x07\U000e0001"])
def test_literals_expand_to_themselves(text: str) -> None:
    assert expand(literal(f"a{text}b{text}") + "{{ .System }}", []) == f"a{text}b{text}"


def test_stop_texts_are_those_of_the_generation_configuration_and_of_the_template(
    tokenizer: Any, tmp_path: Path
) -> None:
    ids = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<repo_name>"])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    fields, stops = parsed(build_modelfile(tmp_path, tokenizer, "my model.gguf", False).text)
    assert fields["FROM"] == "./my model.gguf"
    assert stops == ["<repo_name>", "<|endoftext|>", "<|im_end|>"]


def test_a_template_without_an_end_of_turn_has_the_stops_of_the_configuration(
    tokenizer: Any, tmp_path: Path
) -> None:
    changed = with_template(
        tokenizer, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    found = build_modelfile(tmp_path, changed, "a.gguf", False)
    assert parsed(found.text)[1] == []
    assert any(warning.startswith("stop: ") for warning in found.warnings)


def test_the_modelfile_lies_beside_the_file() -> None:
    assert modelfile_of(Path("a/b.q8.gguf")) == Path("a/b.q8.Modelfile")
    assert modelfile_of(Path("a/b.1")) == Path("a/b.1.Modelfile")
