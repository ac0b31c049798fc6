"""What recipes and suites have in common: strict YAML; errors that name line, field, remedy."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lora_kit.errors import RecipeError

FieldPath = tuple[str | int, ...]


class Section(BaseModel):
    """A frozen part of a YAML document; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        str_strip_whitespace=True,
    )


def _not_a_bool(value: object) -> object:
    # Pydantic reads `true` as 1, so that `rank: true` would train an adapter of rank 1.
    if isinstance(value, bool):
        raise ValueError(f"a number is wanted, not {str(value).lower()}")
    return value


Count = Annotated[int, BeforeValidator(_not_a_bool), Field(ge=1)]
Whole = Annotated[int, BeforeValidator(_not_a_bool), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_not_a_bool), Field(gt=0)]
NotNegative = Annotated[float, BeforeValidator(_not_a_bool), Field(ge=0)]
Share = Annotated[float, BeforeValidator(_not_a_bool), Field(ge=0, le=1)]
Fraction = Annotated[float, BeforeValidator(_not_a_bool), Field(ge=0, lt=1)]

Model = TypeVar("Model", bound=Section)


@dataclass(frozen=True)
class Document:
    """A parsed YAML file: its value, where each field stands, and what is wrong with its form."""

    origin: str
    value: dict[str, Any]
    lines: Mapping[FieldPath, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def read_document(path: Path) -> Document:
    """Read a YAML mapping.

    Raises:
        RecipeError: if the file cannot be read, is no YAML, or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    return parse_document(text, str(path))


def parse_document(text: str, origin: str) -> Document:
    """Parse YAML text into a document; `origin` is what errors call it."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"{origin}: {place}not valid YAML: {problem}") from error
    except (ValueError, RecursionError) as error:
        # Dates that are none, numbers of thousands of digits, anchors that hold themselves.
        raise RecipeError(f"{origin}: a value cannot be read: {error}") from error
    if not isinstance(value, dict) or root is None:
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise RecipeError(f"{origin}: a mapping of fields is wanted, found {found}")
    lines: dict[FieldPath, int] = {}
    problems: list[str] = []
    try:
        _walk(root, (), lines, problems)
    except RecursionError as error:
        raise RecipeError(f"{origin}: an anchor holds itself, or fields nest too deeply") from error
    return Document(origin, value, lines, tuple(problems))


def _walk(
    node: yaml.Node, path: FieldPath, lines: dict[FieldPath, int], problems: list[str]
) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            child_path = (*path, str(key.value))
            line = key.start_mark.line + 1
            if child_path in lines:
                # YAML keeps the last of two equal keys without a word.
                problems.append(
                    f"line {line}, {dotted(child_path)}: given twice, first on line "
                    f"{lines[child_path]}; keep one"
                )
            lines[child_path] = line
            _walk(child, child_path, lines, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _walk(child, (*path, index), lines, problems)


def dotted(path: Sequence[str | int]) -> str:
    """`("data", "train", 0)` as `data.train.0`, the form that `--set` takes."""
    return ".".join(str(part) for part in path)


def override(document: Document, assignment: str) -> Document:
    """Set one field by `path.to.field=value`, the value read as YAML.

    Raises:
        RecipeError: if the assignment has no `=`, or its path leads through a value.
    """
    name, separator, text = assignment.partition("=")
    if not separator or not name.strip():
        raise RecipeError(
            f"--set {assignment}: write it as field=value, for example training.epochs=2"
        )
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"--set {assignment}: the value is not valid YAML") from error
    path = tuple(int(part) if part.isdigit() else part for part in name.strip().split("."))
    return Document(
        document.origin, _with(document.value, path, value, name), document.lines, document.problems
    )


def _with(node: Any, path: FieldPath, value: object, name: str) -> Any:
    if not path:
        return value
    head, rest = path[0], path[1:]
    if node is None:
        node = {}
    if isinstance(node, dict):
        return {**node, head: _with(node.get(head), rest, value, name)}
    if isinstance(node, list) and isinstance(head, int) and head < len(node):
        return [*node[:head], _with(node[head], rest, value, name), *node[head + 1 :]]
    raise RecipeError(
        f"--set {name}: `{head}` leads nowhere in {type(node).__name__} "
        + (f"of {len(node)} entries (counted from 0)" if isinstance(node, list) else repr(node))
    )


def validate(model: type[Model], document: Document) -> Model:
    """Turn a document into its model.

    Raises:
        RecipeError: with every problem of the document, each with line, field and what is possible.
    """
    problems = list(document.problems)
    try:
        instance = model.model_validate(document.value)
    except ValidationError as error:
        problems += [
            _describe(model, document, dict(detail))
            for detail in error.errors(include_url=False)
            if not _is_echo(dict(detail), error)
        ]
    else:
        if not problems:
            return instance
    noun = "problem" if len(problems) == 1 else "problems"
    raise RecipeError(
        f"{document.origin}: {len(problems)} {noun}\n" + "\n".join(f"  {p}" for p in problems)
    )


def _is_echo(detail: dict[str, Any], error: ValidationError) -> bool:
    # A field that takes a word or a list reports a failure for each form; the first says enough.
    place = _field_path(detail["loc"])
    same = [e for e in error.errors(include_url=False) if _field_path(e["loc"]) == place]
    return len(same) > 1 and detail["loc"] != same[0]["loc"]


def _field_path(location: tuple[str | int, ...]) -> FieldPath:
    # Pydantic appends the name of a union's member, which is no field of the document.
    return tuple(
        part for part in location if isinstance(part, int) or part.replace("_", "").isalnum()
    )


def _describe(model: type[Section], document: Document, detail: dict[str, Any]) -> str:
    path = _field_path(detail["loc"])
    line = next(
        (
            document.lines[path[:end]]
            for end in range(len(path), 0, -1)
            if path[:end] in document.lines
        ),
        None,
    )
    place = (f"line {line}, " if line else "") + (dotted(path) or "the whole")
    kind = detail["type"]
    message = str(detail["msg"]).removeprefix("Value error, ")
    if not path and kind == "value_error":
        return message  # it names the fields that do not go together
    if kind == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`? " if near else ""
        return f"{place}: unknown key; {hint}Possible here: {', '.join(known)}"
    if kind == "missing":
        return f"{place}: missing; it has to be given"
    given = repr(detail.get("input"))
    if len(given) > 60:
        given = given[:57] + "..."
    return f"{place}: {message[0].lower()}{message[1:]}; given: {given}"


def _known_keys(model: type[Section], path: FieldPath) -> list[str]:
    current: type[Section] | None = model
    for part in path:
        if isinstance(part, int) or current is None:
            continue
        info = current.model_fields.get(part)
        current = _section_of(info.annotation) if info else None
    return list(current.model_fields) if current else []


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if typing.get_origin(annotation) in (list, tuple, typing.Union, types.UnionType, Annotated):
        for argument in typing.get_args(annotation):
            found = _section_of(argument)
            if found is not None:
                return found
    return None


def bundled(name: str, folders: Sequence[str]) -> Path | None:
    """A YAML file that ships with the package, by name without its ending.

    Args:
        name: such as `quickstart`.
        folders: where it may lie, relative to the package (in a wheel) or to the checkout.
    """
    package = Path(__file__).parent
    for root in (package, package.parent):
        for folder in folders:
            path = root / folder / f"{name}.yaml"
            if path.is_file():
                return path
    return None


def bundled_names(folders: Sequence[str]) -> list[str]:
    """All names that `bundled` would find."""
    package = Path(__file__).parent
    return sorted(
        {
            path.stem
            for root in (package, package.parent)
            for folder in folders
            for path in (root / folder).glob("*.yaml")
        }
    )


def find_document(reference: str, folders: Sequence[str], noun: str) -> Path:
    """The file that a path or a bundled name means.

    Raises:
        RecipeError: if there is none, with the bundled names.
    """
    path = Path(reference)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if path.is_file():
            return path
        raise RecipeError(f"{reference}: no such file")
    found = bundled(reference, folders)
    if found is not None:
        return found
    names = bundled_names(folders)
    near = difflib.get_close_matches(reference, names, n=1)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    raise RecipeError(
        f"{reference}: neither a file nor a bundled {noun}.{hint} Bundled: {', '.join(names)}"
    )
