"""Modelfile for Ollama: file, chat template and stop texts of an export.

Reference: docs/modelfile.md and docs/template.md in Ollama.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import jinja2

from lora_kit.backbone.chat_template import render_chat
from lora_kit.data.rows import Message
from lora_kit.data.templates import FIXED_DATE, render
from lora_kit.data.tokenization import end_of_turn_id
from lora_kit.merging.exporting.chat_shape import Turn, chat_shapes
from lora_kit.merging.exporting.go_template import expand
from lora_kit.merging.exporting.vocabulary import configured_stop_ids
from lora_kit.runtime.errors import DataError

# Texts with characters that the two languages of templates and a Modelfile treat in their own way.
QUESTIONS = ("How do I sort a list?", 'A "quoted" {{ word }}:\n\n```\nx = 1\n```', "Größe? 你好 🚀")
ANSWERS = ("Call `sorted(x)`.\n\nThe list stays as it is.", '{"a": """b"""} <b>&amp;</b>')
SYSTEM = 'You answer in "JSON".\n{{ .Prompt }}'


@dataclass(frozen=True)
class Modelfile:
    """Modelfile of an export.

    Attributes:
        text: content of the file.
        warnings: differences from the model's own chat template, and parts that were left out.
    """

    text: str
    warnings: tuple[str, ...]


def modelfile_of(output: Path) -> Path:
    """Return the path of the Modelfile beside a GGUF file."""
    name = output.name.removesuffix(".gguf")
    return output.with_name(f"{name}.Modelfile")


def adds_start(reader: Any) -> bool:
    """Return True if a GGUF file tells programs to begin every prompt with its start token.

    Args:
        reader: `gguf.GGUFReader` of the file.
    """
    field = reader.fields.get("tokenizer.ggml.add_bos_token")
    if field is not None:
        return bool(field.contents())
    # The default in llama.cpp, which depends on the kind of the tokenizer.
    return bool(reader.fields["tokenizer.ggml.model"].contents() == "llama")


def build_modelfile(directory: Path, tokenizer: Any, name: str, adds_start: bool) -> Modelfile:
    """Build the Modelfile of a GGUF file in the same folder.

    Args:
        directory: directory of the model that was exported.
        tokenizer: tokenizer of the model.
        name: name of the GGUF file.
        adds_start: if true, programs begin every prompt with the start token, as the GGUF file
            tells them.
    """
    lines = [f"FROM ./{name}"]
    warnings: list[str] = []
    if tokenizer.chat_template:
        added = (tokenizer.bos_token or "") if adds_start else ""
        template, warnings = ollama_template(tokenizer, added)
        lines += [f'TEMPLATE """{template}"""'] if template else []
    ids = set(configured_stop_ids(directory))
    try:
        ids.add(end_of_turn_id(tokenizer))
    except DataError as error:
        warnings.append(f"stop: {error}")
    for text in sorted(tokenizer.decode([index]) for index in ids):
        if text.strip() and text.isprintable():
            lines.append(f'PARAMETER stop "{text}"')
        else:
            warnings.append(
                f"stop: a Modelfile cannot hold the stop token {text!r}; it is left out"
            )
    return Modelfile("\n".join(lines) + "\n", tuple(warnings))


@dataclass(frozen=True)
class _Chat:
    """Chat template of a tokenizer."""

    tokenizer: Any

    def render(
        self, turns: Sequence[Turn], begins_answer: bool = True, thinking: bool = False
    ) -> str | None:
        """Render as in training and evaluation; return `None` where the template refuses."""
        messages = [Message(turn["role"], turn["content"]) for turn in turns]
        try:
            return render(messages, self.tokenizer, begins_answer, thinking=thinking)
        except (jinja2.TemplateError, ValueError):
            return None

    def render_of_today(self, turns: Sequence[Turn]) -> str | None:
        """Render with the date that the template chooses itself."""
        options = {"add_generation_prompt": True, "enable_thinking": False}
        try:
            return render_chat(self.tokenizer, turns, **options)
        except (jinja2.TemplateError, ValueError):
            return None


def ollama_template(tokenizer: Any, added: str) -> tuple[str, list[str]]:
    """Write the tokenizer's chat template in Ollama's language, and prove it on conversations.

    Conversations begin with a question, end with one, and alternate; Ollama joins turns of one
    role. Tools and reasoning are left out.

    Args:
        tokenizer: tokenizer with a chat template.
        added: start token that Ollama adds to every prompt by itself; empty if none.

    Returns:
        The template, empty if the chat template cannot be written so, and warnings.
    """
    chat = _Chat(tokenizer)
    is_written = (chat.render(_chat(1)) or "").startswith(added)
    for shape in chat_shapes(chat.render, added if is_written else ""):
        template = shape.go_template()
        if all(_is_same(template, chat, turns, added if is_written else "") for turns in CHATS):
            warnings = list(_differences(template, chat, added))
            if not is_written:
                warnings.append(
                    f"TEMPLATE: Ollama begins prompts with {added}, as the GGUF file tells it, and "
                    "the chat template does not"
                )
            return template, warnings
    return "", [
        "TEMPLATE: the chat template writes conversations that a template of Ollama cannot; it is "
        "left out. Ollama uses the one in the GGUF file if it knows that; otherwise write TEMPLATE "
        "yourself"
    ]


def _chat(questions: int, system: str = "") -> list[Turn]:
    """Return a conversation that ends with a question."""
    texts = [QUESTIONS[0], ANSWERS[0], QUESTIONS[1], ANSWERS[1], QUESTIONS[2]]
    turns = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant") * 3, texts, strict=False)
    ]
    first = [{"role": "system", "content": system}] if system else []
    return first + turns[: 2 * questions - 1]


CHATS = [
    _chat(questions, system)
    for system, questions in product(("", SYSTEM), range(1, len(QUESTIONS) + 1))
]


def _is_same(template: str, chat: _Chat, turns: Sequence[Turn], added: str) -> bool:
    """Return True if both write the same; a system text may be refused by the chat template."""
    expected = chat.render(turns)
    if expected is None:
        return turns[0]["role"] == "system"
    return added + expand(template, turns) == expected


def _differences(template: str, chat: _Chat, added: str) -> Iterator[str]:
    """Yield what is said where Ollama's prompts can differ from those of the chat template."""
    question, with_system = _chat(1), _chat(1, SYSTEM)
    told = chat.render(with_system)
    if told is None or SYSTEM not in told:
        reason = "refuses" if told is None else "does not write"
        yield f"TEMPLATE: the chat template {reason} a system text; Ollama then leaves it out"
    if chat.render(question, thinking=True) != chat.render(question):
        yield (
            "TEMPLATE: answers begin without reasoning, as in training and evaluation; Ollama's "
            "switch for it has no effect"
        )
    if chat.render_of_today(question) != chat.render(question):
        yield (
            "TEMPLATE: the chat template writes a date; Ollama's writes the one of training, "
            f"{FIXED_DATE}, on every day"
        )
    spaced = [{"role": "user", "content": f"\n  {QUESTIONS[0]} \n"}]
    begun = _chat(2)[1:]
    for turns, difference in (
        (spaced, "strips white space around a text, which Ollama keeps"),
        (begun, "writes a conversation that the assistant begins in another way"),
    ):
        expected = chat.render(turns)
        if expected is not None and expected.removeprefix(added) != expand(template, turns):
            yield f"TEMPLATE: the chat template {difference}"
