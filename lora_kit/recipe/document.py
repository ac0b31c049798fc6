"""A YAML document as it was written: its value, the line of each field, and `--set` overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lora_kit.runtime.errors import RecipeError

FieldPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A parsed YAML mapping.

    Attributes:
        origin: name of the document in errors, such as its path.
        value: the mapping.
        lines: the line of each field, counted from 1.
        overridden: the fields that `--set` has set.
        problems: defects of the document's form, such as a key that is given twice.
    """

    origin: str
    value: dict[str, Any]
    lines: Mapping[FieldPath, int] = field(default_factory=dict)
    overridden: tuple[FieldPath, ...] = ()
    problems: tuple[str, ...] = ()

    def place(self, path: FieldPath) -> str:
        """Return where a field was given: `line 3, ` or `--set `; empty if it was not given."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.overridden:
                return "--set "
            if path[:end] in self.lines:
                return f"line {self.lines[path[:end]]}, "
        return ""


def read_document(path: Path) -> Document:
    """Read a YAML mapping from a file.

    Raises:
        RecipeError: if the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    return parse_document(text, str(path))


def parse_document(text: str, origin: str) -> Document:
    """Parse YAML text into a document; `origin` is what errors call it.

    Raises:
        RecipeError: if the text is not YAML, or not a mapping.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        value = loader.construct_document(root) if root else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"{origin}: {place}not valid YAML: {problem}") from error
    except (ValueError, RecursionError) as error:
        # Impossible dates, numbers of thousands of digits, anchors that contain themselves.
        raise RecipeError(f"{origin}: a value cannot be read: {error}") from error
    if not isinstance(value, dict) or root is None:
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise RecipeError(f"{origin}: a mapping of fields is expected (got {found})")
    lines: dict[FieldPath, int] = {}
    problems: list[str] = []
    try:
        _walk(root, (), lines, problems)
    except RecursionError as error:
        raise RecipeError(
            f"{origin}: an anchor contains itself, or fields nest too deeply"
        ) from error
    return Document(origin, value, lines, problems=tuple(problems))


def _walk(
    node: yaml.Node, path: FieldPath, lines: dict[FieldPath, int], problems: list[str]
) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            child_path = (*path, str(key.value))
            line = key.start_mark.line + 1
            if child_path in lines:
                # YAML silently keeps the last of two equal keys.
                problems.append(
                    f"line {line}, {dotted(child_path)}: given twice, first on line "
                    f"{lines[child_path]}. Fix: keep one"
                )
            lines[child_path] = line
            _walk(child, child_path, lines, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _walk(child, (*path, index), lines, problems)


def dotted(path: Sequence[str | int]) -> str:
    """Return `("data", "train", 0)` as `data.train.0`, the form that `--set` takes."""
    return ".".join(str(part) for part in path)


def key_of(node: Any, part: str | int) -> Any:
    """Return the key of a mapping that is written as a field's name, or an entry's index."""
    # YAML reads the key 1 as a number, and a name has it as text.
    if isinstance(node, dict):
        return next((known for known in node if str(known) == str(part)), part)
    return part


def has_field(node: Any, part: str | int) -> bool:
    """Return whether a mapping has a key, or a list an index."""
    if isinstance(node, list):
        return isinstance(part, int) and part < len(node)
    return isinstance(node, dict) and key_of(node, part) in node


def override(document: Document, assignment: str) -> Document:
    """Return the document with one field set by `path.to.field=value`, the value read as YAML.

    Raises:
        RecipeError: if the assignment has no `=`, or its path leads through a scalar.
    """
    name, separator, text = assignment.partition("=")
    if not separator or not name.strip():
        raise RecipeError(
            f"--set {assignment}: not an assignment. Fix: write field=value, for example "
            "training.epochs=2"
        )
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"--set {assignment}: the value is not valid YAML") from error
    changed, path = _assign(document.value, name.strip().split("."), value, name)
    # The fields below it that the file names are gone, with their lines.
    lines = {place: at for place, at in document.lines.items() if place[: len(path)] != path}
    overridden = (*document.overridden, path)
    return replace(document, value=changed, lines=lines, overridden=overridden)


def _assign(node: Any, parts: Sequence[str], value: object, name: str) -> tuple[Any, FieldPath]:
    """Return a copy of a node with the value set, and the path as the document has it."""
    if not parts:
        return value, ()
    head, rest = parts[0], parts[1:]
    if node is None:
        node = {}
    if isinstance(node, dict):
        key = key_of(node, head)
        inner, path = _assign(node.get(key), rest, value, name)
        return {**node, key: inner}, (head, *path)
    if head.isdigit() and has_field(node, index := int(head)):
        inner, path = _assign(node[index], rest, value, name)
        return [*node[:index], inner, *node[index + 1 :]], (index, *path)
    found = (
        f"a list of {len(node)} entries, counted from 0" if isinstance(node, list) else repr(node)
    )
    raise RecipeError(f"--set {name}: there is no `{head}` in {found}")
