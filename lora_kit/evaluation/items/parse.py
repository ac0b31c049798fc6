"""Strict reading of the YAML files of this folder: a malformed entry is an error."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, ValidationError

from lora_kit.recipe.section import Section

# YAML reads 1945 as a number and no as false unless they are quoted.
Text = Annotated[str, Field(pattern=r"\S")]
ItemEntry = TypeVar("ItemEntry", bound=Section)


def read_entries(file: str, model: type[ItemEntry]) -> list[ItemEntry]:
    """Return the entries that a file of this folder lists."""
    return [read_entry(model, value, file) for value in read_item_file(file)]


def read_entry(model: type[ItemEntry], value: Any, file: str) -> ItemEntry:
    """Return one entry of a file; its first field names it.

    Raises:
        ValueError: if the entry does not fit the model; names the file, the entry and the field.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        named = value.get(next(iter(model.model_fields))) if isinstance(value, Mapping) else value
        place = ".".join(str(part) for part in (named, *first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error":
            message += f" (got {first['input']!r}). Fix: correct it; quote numbers, yes and no"
        raise ValueError(f"{file}: {place}: {message}") from error


def read_item_file(file: str) -> list[Any]:
    """Return the list in a file of this folder."""
    content = resources.files("lora_kit.evaluation.items").joinpath(file).read_text("utf-8")
    entries: list[Any] = load_strict_yaml(content)
    return entries


def load_strict_yaml(content: str) -> Any:
    """Parse a YAML text.

    Raises:
        ValueError: if a mapping has duplicate keys, of which PyYAML would silently keep the last.
    """
    return yaml.load(content, Loader=_Loader)


# libyaml parses several times as fast, and PyYAML may be built without it.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc]
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            line = node.start_mark.line + 1
            raise ValueError(f"line {line}: duplicate keys (got {twice}). Fix: rename one")
        mapping: dict[object, object] = super().construct_mapping(node, deep)
        return mapping
