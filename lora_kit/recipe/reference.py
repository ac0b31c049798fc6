"""The reference of all fields and the JSON schema for editors, both generated from the sections."""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lora_kit.recipe.section import Section, inner_section, written_fields

RECIPE_INTRODUCTION = """\
# Recipe reference

Every field of a recipe. Fields without `required` may be left out. Values can be overridden on the
command line: `--set training.epochs=2`, `--set data.train.0.limit=100`. `lora-kit schema` prints a
JSON schema with which editors complete and check recipes.

This page is generated: `lora-kit schema --markdown > recipes/REFERENCE.md`.
"""

SUITE_INTRODUCTION = """\
# Suite reference

Every field of a suite of tasks. Fields without `required` may be left out. `lora-kit schema suite`
prints a JSON schema with which editors complete and check suites.

This page is generated: `lora-kit schema suite --markdown > eval/REFERENCE.md`.
"""

NAMES = {str: "text", int: "integer", float: "number", bool: "true or false"}
BOUNDS: dict[type, str] = {
    Ge: ">= {:,}",
    Gt: "> {:,}",
    Le: "<= {:,}",
    Lt: "< {:,}",
    MinLen: "at least {} long",
    MaxLen: "at most {} long",
}
# Choices that are listed in the table; longer lists are named in the field's text or in the schema.
LISTED = 12


def reference(model: type[Section], introduction: str) -> str:
    """Return a Markdown page with a table of the fields of each section of a document.

    Args:
        model: the whole document.
        introduction: the beginning of the page, in Markdown.
    """
    return introduction.rstrip() + "\n" + "\n".join(_section(model, "")) + "\n"


def json_schema(model: type[Section]) -> str:
    """Return the JSON schema of a document (draft 2020-12), indented."""
    schema = model.model_json_schema()
    return json.dumps(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2
    )


def _section(model: type[Section], path: str) -> Iterator[str]:
    yield ""
    yield f"## `{path}`" if path else "## Top level"
    yield ""
    if path:
        yield inspect.cleandoc(model.__doc__ or "")
        yield ""
    yield "| field | type | default | meaning |"
    yield "|---|---|---|---|"
    fields = written_fields(model)
    for name, field in fields.items():
        meaning = _one_line(field.description or _doc_of(field.annotation))
        yield f"| `{name}` | {_cell(_type(field))} | {_default(field)} | {_cell(meaning)} |"
    for name, field in fields.items():
        inner, is_list = inner_section(field.annotation)
        if inner is not None:
            place = f"{path}.{name}" if path else name
            # A section that stands in two places is described once.
            if not (name in ("teacher", "writer") or (path == "data" and name == "validation")):
                yield from _section(inner, place + ("[]" if is_list else ""))


def _doc_of(annotation: Any) -> str:
    inner, _ = inner_section(annotation)
    return inspect.cleandoc(inner.__doc__ or "").split("\n\n")[0] if inner else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _type(field: FieldInfo) -> str:
    return _type_name(field.annotation, field.metadata)


def _type_name(annotation: Any, metadata: Any = ()) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        name = _type_name(arguments[0], arguments[1:])
    elif origin is Literal:
        shown = [f"`{value}`" for value in arguments]
        name = ", ".join(shown) if len(shown) <= LISTED else f"one of {len(shown)} names"
    elif origin in (typing.Union, types.UnionType):
        parts = [_type_name(part) for part in arguments if part is not type(None)]
        name = " or ".join(dict.fromkeys(parts))
    elif origin is list:
        name = f"list of {_type_name(arguments[0])}"
    elif origin is dict:
        name = f"mapping of {_type_name(arguments[0])} to {_type_name(arguments[1])}"
    elif isinstance(annotation, type) and issubclass(annotation, Section):
        name = "section"
    else:
        name = NAMES.get(annotation, "anything")
    bounds = ", ".join(_bounds(metadata))
    return f"{name}, {bounds}" if bounds else name


def _bounds(metadata: Any) -> Iterator[str]:
    several = [part for one in metadata for part in getattr(one, "metadata", (one,))]
    # Of two bounds of one kind, the last holds.
    for kind, bound in {type(one): one for one in several if type(one) in BOUNDS}.items():
        yield BOUNDS[kind].format(*dataclasses.astuple(bound))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return "none"
    if isinstance(value, Section):
        return "see below"
    if not isinstance(value, str):
        return f"`{json.dumps(value)}`"
    # A row of a table is one line.
    shown = value.replace("\n", "\\n")
    return f"`{shown}`"
