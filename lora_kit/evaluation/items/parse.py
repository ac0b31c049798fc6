"""Strict reading of the YAML files of this folder: a malformed entry is an error."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

import yaml


def read_item_file(file: str) -> list[Mapping[str, object]]:
    """Return the mappings that a file of this folder lists."""
    content = resources.files("lora_kit.evaluation.items").joinpath(file).read_text("utf-8")
    values = require_list(load_strict_yaml(content), file)
    return [require_mapping(value, f"an entry of {file}") for value in values]


def load_strict_yaml(content: str) -> object:
    """Parse a YAML text.

    Raises:
        ValueError: if a mapping has duplicate keys, of which PyYAML would silently keep the last.
    """
    return yaml.load(content, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            line = node.start_mark.line + 1
            raise ValueError(f"line {line}: duplicate keys (got {twice}). Fix: rename one")
        return super().construct_mapping(node, deep)


def require_known_keys(value: Mapping[str, object], keys: set[str], where: str) -> None:
    """Refuse a mapping with unknown keys.

    Raises:
        ValueError: if there are unknown keys; names them.
    """
    unknown = sorted(map(str, value.keys() - keys))
    if unknown:
        raise ValueError(
            f"{where}: unknown keys (got {unknown}). Fix: use {', '.join(sorted(keys))}"
        )


def require_text(value: object, where: str) -> str:
    """Return the value if it is a non-empty text.

    Raises:
        ValueError: if the value is anything else.
    """
    # YAML reads 1945 as a number and no as false unless they are quoted.
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: must be text (got {value!r}). Fix: quote numbers, yes and no")
    return value


def require_texts(value: object, where: str) -> tuple[str, ...]:
    """Return the texts of a non-empty list.

    Raises:
        ValueError: if the value is anything else.
    """
    return tuple(
        require_text(part, f"{where}[{index}]")
        for index, part in enumerate(require_list(value, where))
    )


def require_mapping(value: object, where: str) -> Mapping[str, object]:
    """Return the value if it is a mapping.

    Raises:
        ValueError: if the value is anything else.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: must be a mapping (got {value!r}). Fix: write key: value pairs")
    return value


def require_list(value: object, where: str) -> list[object]:
    """Return the value if it is a non-empty list.

    Raises:
        ValueError: if the value is anything else.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: must be a non-empty list (got {value!r}). Fix: write - entries")
    return value
