"""Files of the tokenizer and chat template that lie beside an adapter."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_kit.runtime.errors import AdapterError
from lora_kit.runtime.files import read_json, write_json

TEMPLATE = "chat_template.jinja"
# Template of a processor, as tools for models with images write it.
PROCESSOR_TEMPLATE = "chat_template.json"
# Folder of further templates, by name.
FURTHER_TEMPLATES = "additional_chat_templates"
CONFIG = "tokenizer_config.json"
# Files of which one holds the whole vocabulary.
VOCABULARIES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"),
    *("sentencepiece.bpe.model", "tekken.json"),
)
# Further files of a tokenizer.
PARTS = (CONFIG, "special_tokens_map.json", "added_tokens.json", "merges.txt")


def brought_files(adapter: Path) -> list[str]:
    """Return the names of the files of a tokenizer that an adapter brings."""
    further = sorted(adapter.glob(f"{FURTHER_TEMPLATES}/*.jinja"))
    names = (*VOCABULARIES, *PARTS, TEMPLATE, PROCESSOR_TEMPLATE)
    found = [name for name in names if (adapter / name).is_file()]
    return [*found, *(str(path.relative_to(adapter)) for path in further)]


def copy_adapter_tokenizer(base: Path, adapter: Path, directory: Path) -> None:
    """Write the files of the tokenizer that an adapter brings.

    Args:
        base: directory of the backbone, with its tokenizer's files.
        adapter: directory of the adapter; a vocabulary there replaces the backbone's tokenizer,
            other files are added to it.
        directory: directory with a copy of the backbone's tokenizer, or without one.

    Raises:
        AdapterError: if a file cannot be read.
    """
    config = _json(adapter / CONFIG)
    template = adapter_template(adapter)
    whole = any((adapter / name).is_file() for name in VOCABULARIES)
    if whole and config:
        for name in (*VOCABULARIES, *PARTS):
            (directory / name).unlink(missing_ok=True)
    else:
        config = _json(base / CONFIG) | config
    for name in (*VOCABULARIES, *PARTS):
        if (adapter / name).is_file():
            shutil.copy2(adapter / name, directory / name)
    if template is None:
        # A tokenizer saved without a template does not say that there is none.
        template = _json(base / CONFIG).get("chat_template")
        if (base / TEMPLATE).is_file():
            template = (base / TEMPLATE).read_text(encoding="utf-8")
    config.pop("chat_template", None)
    (directory / TEMPLATE).unlink(missing_ok=True)
    if isinstance(template, str):
        (directory / TEMPLATE).write_text(template, encoding="utf-8")
    elif template is not None:
        config["chat_template"] = template
    if config:
        write_json(directory / CONFIG, config)


def adapter_template(adapter: Path) -> str | list[dict[str, str]] | None:
    """Return the chat template that an adapter brings, or several with their names.

    Returns:
        `None` if it brings none.

    Raises:
        AdapterError: if the template's file cannot be read, or holds no template to use.
    """
    path = adapter / TEMPLATE
    files = {file.stem: file for file in sorted(adapter.glob(f"{FURTHER_TEMPLATES}/*.jinja"))}
    if path.is_file():
        files["default"] = path
    if files:
        return _checked({name: _text(file) for name, file in files.items()}, path)
    for path in (adapter / CONFIG, adapter / PROCESSOR_TEMPLATE):
        value = _json(path).get("chat_template")
        if value is not None:
            return _checked(value, path)
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(
            f"{path}: cannot be read (got {error}). Fix: save it again as UTF-8, or remove it"
        ) from error


def _checked(value: object, path: Path) -> str | list[dict[str, str]]:
    """Return one template, or several with their names, of which one is the default."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        entries = [one if isinstance(one, Mapping) else {} for one in value]
        value = {str(one.get("name")): one.get("template") for one in entries}
    if not isinstance(value, Mapping):
        raise AdapterError(
            f"{path}: chat_template: must be a text (got {value!r:.60}). Fix: save the tokenizer "
            "again, or remove the field"
        )
    wrong = [str(name) for name, text in value.items() if not isinstance(text, str)]
    if wrong or "default" not in value:
        problem = f"{wrong[0]} is no text" if wrong else "none of the templates is the default"
        raise AdapterError(
            f"{path}: chat_template: {problem} (got {', '.join(map(str, value))}). Fix: name the "
            "one that the adapter was trained with `default`"
        )
    if len(value) == 1:
        return str(value["default"])
    return [{"name": str(name), "template": str(text)} for name, text in value.items()]


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, AdapterError) if path.is_file() else {}


def vocabulary_file(adapter: Path) -> Path:
    """Return the file with the vocabulary that an adapter brings, or the adapter's directory."""
    found = [name for name in (*VOCABULARIES, *reversed(PARTS)) if (adapter / name).is_file()]
    return adapter / found[0] if found else adapter
