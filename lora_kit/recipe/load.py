"""From a YAML document to its model, with every problem at once, each with line and remedy."""

from __future__ import annotations

import copy
import types
import typing
from collections.abc import Collection, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from lora_kit.recipe.document import Document, FieldPath, dotted
from lora_kit.recipe.problem import Problem
from lora_kit.recipe.section import Section
from lora_kit.runtime.errors import RecipeError, did_you_mean

Model = TypeVar("Model", bound=Section)

CONFLICTS = "conflicts"
LONGEST_VALUE = 60


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
        own = [detail for detail in details if detail["type"] != CONFLICTS]
        problems += [_describe(model, document, one) for one in own if not _is_echo(one, own)]
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
    model: type[Section], document: Document, details: Collection[dict[str, Any]]
) -> list[Problem]:
    """Return the conflicts between the fields that are valid."""
    invalid = {path for detail in details if (path := _field_path(detail["loc"]))}
    # Without one of its entries, a list counts the others otherwise than the document.
    invalid |= {path[:-1] for path in invalid if isinstance(path[-1], int)}
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
        inside = isinstance(node, dict) and part in node
        inside = inside or (isinstance(node, list) and isinstance(part, int) and part < len(node))
        if not inside:
            return
        node = node[part]
    if isinstance(node, dict):
        node.pop(path[-1], None)
    elif isinstance(node, list) and isinstance(path[-1], int) and path[-1] < len(node):
        del node[path[-1]]


def _path_of(name: str) -> FieldPath:
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))


def _overlap(one: FieldPath, other: FieldPath) -> bool:
    """Return whether one field is the other, or a part of it."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def _is_echo(detail: dict[str, Any], details: list[dict[str, Any]]) -> bool:
    # A field that takes a word or a list reports a failure for each form; the first says enough.
    place = _field_path(detail["loc"])
    same = [other for other in details if _field_path(other["loc"]) == place]
    return len(same) > 1 and detail["loc"] != same[0]["loc"]


def _field_path(location: tuple[str | int, ...]) -> FieldPath:
    # Pydantic appends the name of a union's member, which is no field of the document.
    return tuple(
        part for part in location if isinstance(part, int) or part.replace("_", "").isalnum()
    )


def _describe_conflict(document: Document, problem: Problem) -> str:
    # The field that is to be changed may have its default, and the other one stands in the file.
    places = (document.place(_path_of(name)) for name in problem.fields)
    return f"{next((place for place in places if place), '')}{problem.describe()}"


def _describe(model: type[Section], document: Document, detail: dict[str, Any]) -> str:
    path = _field_path(detail["loc"])
    place = document.place(path) + (dotted(path) or "the document")
    kind, message = detail["type"], str(detail["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        hint = did_you_mean(str(detail["loc"][-1]), known)
        return f"{place}: unknown key.{hint} Possible here: {', '.join(known)}"
    if kind == "missing":
        return f"{place}: missing. Fix: add it"
    message = message.replace("Input should be", "must be", 1).replace("Input should", "must", 1)
    given = repr(detail.get("input"))
    if len(given) > LONGEST_VALUE:
        given = given[: LONGEST_VALUE - 3] + "..."
    problem, _, remedy = message.partition(". Fix: ")
    fix = f". Fix: {remedy}" if remedy else ""
    return f"{place}: {problem[0].lower()}{problem[1:]} (got {given}){fix}"


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
