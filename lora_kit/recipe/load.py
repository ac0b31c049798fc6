"""From a YAML document to its model, with every problem at once, each with line and remedy."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from lora_kit.recipe.document import Document, FieldPath, dotted, has_field, key_of
from lora_kit.recipe.problem import Problem
from lora_kit.recipe.section import Section, inner_section, written_fields
from lora_kit.runtime.errors import RecipeError, did_you_mean

Model = TypeVar("Model", bound=Section)

CONFLICTS = "conflicts"
LONGEST_VALUE = 60
# Words of pydantic's messages.
PLAIN_ENGLISH = {
    "Input should": "must",
    "a valid dictionary": "a mapping",
    "a valid integer": "an integer",
    "a valid ": "a ",
}


def conflicts_error(problems: Collection[Problem]) -> PydanticCustomError:
    """Return the error by which a model's validator reports conflicts between fields."""
    text = "; ".join(problem.describe() for problem in problems)
    return PydanticCustomError(CONFLICTS, "{text}", {"text": text, "problems": tuple(problems)})


def validate(model: type[Model], document: Document) -> Model:
    """Turn a document into its model.

    Fields that are invalid themselves are left out and the rest is validated again, so that
    conflicts between the other fields are reported in the same message.

    Raises:
        RecipeError: with every problem of the document, each with its line, field and remedy.
    """
    problems = list(document.problems)
    try:
        instance = model.model_validate(document.value)
    except ValidationError as error:
        details = _details(error)
        own = _by_field(document, details)
        problems += [_describe(model, document, path, same) for path, same in own.items()]
        problems += [
            _describe_conflict(document, problem)
            for problem in (_conflicts(details) or _conflicts_of_the_rest(model, document, own))
        ]
    else:
        if not problems:
            return instance
    noun = "problem" if len(problems) == 1 else "problems"
    raise RecipeError(
        f"{document.origin}: {len(problems)} {noun}\n" + "\n".join(f"  {p}" for p in problems)
    )


def _details(error: ValidationError) -> list[dict[str, Any]]:
    return [dict(detail) for detail in error.errors(include_url=False)]


def _conflicts(details: Collection[dict[str, Any]]) -> list[Problem]:
    return [p for one in details if one["type"] == CONFLICTS for p in one["ctx"]["problems"]]


def _conflicts_of_the_rest(
    model: type[Section], document: Document, paths: Collection[FieldPath]
) -> list[Problem]:
    """Return the conflicts between the fields that are valid.

    Args:
        model: model of the document.
        document: the document.
        paths: invalid fields.
    """
    # Without one of its entries, a list counts the others otherwise than the document.
    invalid = {path[:-1] if isinstance(path[-1], int) else path for path in paths if path}
    rest = copy.deepcopy(document.value)
    for path in sorted(invalid, key=dotted, reverse=True):
        _remove(rest, path)
    for name, value in model.placeholders.items():
        rest = _with_placeholder(rest, name.split("."), value)
    try:
        model.model_validate(rest)
    except ValidationError as error:
        return [
            problem
            for problem in _conflicts(_details(error))
            if not any(_overlap(_path_of(name), one) for name in problem.fields for one in invalid)
        ]
    return []


def _with_placeholder(node: Any, parts: Sequence[str], value: Any) -> Any:
    """Return a node with a required field, if that is missing."""
    if not parts:
        return value if node is None else node
    if node is not None and not isinstance(node, dict):
        return node
    inner = _with_placeholder((node or {}).get(parts[0]), parts[1:], value)
    return {**(node or {}), parts[0]: inner}


def _remove(node: Any, path: FieldPath) -> None:
    """Delete a field in place; nothing happens where it is missing."""
    for part in path[:-1]:
        if not has_field(node, part):
            return
        node = node[key_of(node, part)]
    if has_field(node, path[-1]):
        del node[key_of(node, path[-1])]


def _path_of(name: str) -> FieldPath:
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))


def _overlap(one: FieldPath, other: FieldPath) -> bool:
    """Return whether one field is the other, or a part of it."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def _by_field(
    document: Document, details: Sequence[dict[str, Any]]
) -> dict[FieldPath, list[dict[str, Any]]]:
    """Return the errors of single fields; a field that takes several forms has one for each."""
    found: dict[FieldPath, list[dict[str, Any]]] = {}
    for detail in details:
        if detail["type"] != CONFLICTS:
            found.setdefault(_field_path(document.value, detail), []).append(detail)
    # Where an entry of a list is wrong, that the field is no word either says nothing.
    inside = {path[:end] for path in found for end in range(len(path))}
    return {path: same for path, same in found.items() if path not in inside}


def _field_path(value: Any, detail: dict[str, Any]) -> FieldPath:
    """Return the field of an error, without the names of a union's members in its location."""
    path: list[str | int] = []
    for part in detail["loc"]:
        if has_field(value, part):
            path.append(str(part) if isinstance(value, dict) else part)
            value = value[key_of(value, part)]
    missing = detail["loc"][-1:] if detail["type"] == "missing" else ()
    return (*path, *missing)


def _describe_conflict(document: Document, problem: Problem) -> str:
    # The field that is to be changed may have its default, and the other one stands in the file.
    places = (document.place(_path_of(name)) for name in problem.fields)
    return f"{next((place for place in places if place), '')}{problem.describe()}"


def _describe(
    model: type[Section], document: Document, path: FieldPath, details: Sequence[dict[str, Any]]
) -> str:
    """Return the message of a field: its place, the problem of each form, value and remedy."""
    place = document.place(path) + (dotted(path) or "the document")
    first = details[0]
    if first["type"] in ("extra_forbidden", "invalid_key"):
        known = _known_keys(model, path[:-1])
        hint = did_you_mean(str(path[-1]), known)
        return f"{place}: unknown key.{hint} Possible here: {', '.join(known)}"
    if first["type"] == "missing":
        return f"{place}: missing. Fix: add it"
    problems: list[str] = []
    remedies: list[str] = []
    for detail in details:
        problem, _, remedy = _message(detail).partition(". Fix: ")
        problems.append(problem.removeprefix("must be ") if problems else problem)
        remedies += [f". Fix: {remedy}"] if remedy else []
    given = repr(first.get("input"))
    if len(given) > LONGEST_VALUE:
        given = given[: LONGEST_VALUE - 3] + "..."
    return f"{place}: {' or '.join(dict.fromkeys(problems))} (got {given}){''.join(remedies[:1])}"


def _message(detail: dict[str, Any]) -> str:
    """Return pydantic's message in the form that our own have."""
    if detail["type"] == "too_short":
        return f"must have at least {detail['ctx']['min_length']} entries"
    text = str(detail["msg"]).removeprefix("Value error, ")
    text = text.partition(", unable to parse")[0].partition(" or instance of")[0]
    for theirs, ours in PLAIN_ENGLISH.items():
        text = text.replace(theirs, ours, 1)
    return text[0].lower() + text[1:]


def _known_keys(model: type[Section], path: FieldPath) -> list[str]:
    current: type[Section] | None = model
    for part in path:
        if isinstance(part, int) or current is None:
            continue
        info = current.model_fields.get(part)
        current = inner_section(info.annotation)[0] if info else None
    return list(written_fields(current)) if current else []
