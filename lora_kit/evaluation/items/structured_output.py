"""Structured output: facts of a text as JSON under a given schema.

An entry of `structured_output.yaml` is a schema with several texts. The prompt shows the schema; a
right response is valid under it and has the values of the text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from lora_kit.evaluation.items.instructions import InstructionRow
from lora_kit.evaluation.items.parse import Text, read_entries
from lora_kit.metrics.instruction_checks import InstructionCheck
from lora_kit.recipe.section import Section

PROMPT = """\
Extract the facts of the text as JSON. Answer with one JSON value that is valid under the schema, \
and with nothing else. Copy words as they are in the text; lists keep the order of the text.

Schema: {schema}

Text: {text}"""


class StructuredText(Section):
    """Text, and the value of a right response."""

    text: Text
    example: Any
    """JSON value that passes; each of its values is required."""
    also: dict[str, list[Any]] = Field(default_factory=dict)
    """Further right values by their place, such as `customer.name`."""


class StructuredSchema(Section):
    """JSON Schema with texts."""

    id: Text
    shape: Text
    """Form of the value, by which results are broken down, such as `nested`."""
    json_schema: dict[str, Any]
    """Schema as in the prompt."""
    texts: dict[Text, StructuredText] = Field(min_length=2)


def structured_schemas() -> list[StructuredSchema]:
    """Return all schemas, in the order of `structured_output.yaml`."""
    return read_entries("structured_output.yaml", StructuredSchema)


def structured_output_rows() -> list[InstructionRow]:
    """Return all rows, in the order of `structured_output.yaml`."""
    return [row for schema in structured_schemas() for row in schema_rows(schema)]


def schema_rows(schema: StructuredSchema) -> Iterator[InstructionRow]:
    """Yield a row for each text of a schema; they are one cluster."""
    shown = json.dumps(schema.json_schema, ensure_ascii=False)
    for name, one in schema.texts.items():
        required = required_values(one.example, one.also)
        check = {"kind": "json_schema", "value": {**schema.json_schema, "allOf": [required]}}
        yield InstructionRow(
            id=f"{schema.id}/{name}",
            prompt=PROMPT.format(schema=shown, text=one.text),
            checks=(InstructionCheck.parse(check),),
            cluster=schema.id,
            slices={"shape": schema.shape},
        )


def required_values(
    value: Any, also: Mapping[str, Sequence[Any]], place: str = ""
) -> dict[str, Any]:
    """Return the JSON Schema of the values that are right in place of the given one.

    Args:
        value: JSON value.
        also: further right values by place.
        place: place of the value, with dots; the parts of a list have the place of the list.
    """
    if isinstance(value, dict):
        parts = {
            key: required_values(one, also, f"{place}.{key}" if place else key)
            for key, one in value.items()
        }
        return {"type": "object", "properties": parts, "required": list(parts)}
    if isinstance(value, list) and place not in also:
        parts_of_list = [required_values(one, also, place) for one in value]
        size = {"minItems": len(value), "maxItems": len(value)}
        return {"type": "array", **({"prefixItems": parts_of_list} if value else {}), **size}
    return {"enum": [value, *also[place]]} if place in also else {"const": value}
