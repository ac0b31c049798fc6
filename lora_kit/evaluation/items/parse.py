"""Reading the YAML files of this folder: strictly, so that a slip is an error and not an item."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

import yaml


def read(file: str) -> list[Mapping[str, object]]:
    """The mappings that a file of this folder lists."""
    content = resources.files("lora_kit.evaluation.items").joinpath(file).read_text("utf-8")
    return [mapping(value, f"an entry of {file}") for value in sequence(load(content), file)]


def load(content: str) -> object:
    """What a YAML text says.

    Raises:
        ValueError: a mapping has a key twice. PyYAML would keep the last without a word, and an
            item would be lost.
    """
    return yaml.load(content, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"the keys {twice} are there twice:\n{node.start_mark}")
        return super().construct_mapping(node, deep)


def known_keys(value: Mapping[str, object], keys: set[str], where: str) -> None:
    """Refuse a mapping with other keys than these.

    Raises:
        ValueError: names them.
    """
    unknown = sorted(map(str, value.keys() - keys))
    if unknown:
        raise ValueError(f"{where} has unknown keys {unknown}")


def text(value: object, where: str) -> str:
    """The value, if it is text that says something.

    Raises:
        ValueError: if not.
    """
    # YAML reads 1945 as a number and no as false; both must be quoted to stay what was written.
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} must be text (quote numbers, yes and no), not {value!r}")
    return value


def texts(value: object, where: str) -> tuple[str, ...]:
    """The texts of a list that is not empty.

    Raises:
        ValueError: if it is something else.
    """
    return tuple(
        text(part, f"{where}[{index}]") for index, part in enumerate(sequence(value, where))
    )


def mapping(value: object, where: str) -> Mapping[str, object]:
    """The value, if it is a mapping.

    Raises:
        ValueError: if not.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a mapping, not {value!r}")
    return value


def sequence(value: object, where: str) -> list[object]:
    """The value, if it is a list that is not empty.

    Raises:
        ValueError: if not.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} must be a list with something in it, not {value!r}")
    return value
