"""Structured output: texts whose facts fit the schema, each with a right response."""

import json
from collections import Counter
from typing import Any

import jsonschema
import pytest

from lora_kit.evaluation.items.structured_output import (
    required_values,
    structured_output_rows,
    structured_schemas,
)
from lora_kit.metrics.instruction_checks import follows_instructions

SCHEMAS = structured_schemas()
ROWS = structured_output_rows()
EXAMPLES = [
    (schema, text, row)
    for (schema, text), row in zip(
        [(schema, text) for schema in SCHEMAS for text in schema.texts.values()], ROWS, strict=True
    )
]
WRONG = ("", "I'm sorry, but I can't help with that.", "the the the the", "{}", "[]", "null")

each = pytest.mark.parametrize(
    ("schema", "text", "row"), EXAMPLES, ids=[row.id for *_, row in EXAMPLES]
)


def test_there_are_enough_texts_of_every_shape() -> None:
    assert len(ROWS) >= 100
    assert len({row.id for row in ROWS}) == len(ROWS) == len({row.prompt for row in ROWS})
    shapes = Counter(row.slices["shape"] for row in ROWS)
    assert set(shapes) == {"flat", "nested", "list", "enum", "number", "null"}
    assert min(shapes.values()) >= 12


def test_the_texts_of_a_schema_are_one_cluster() -> None:
    assert len({row.cluster for row in ROWS}) == len(SCHEMAS) >= 30


@each
def test_the_example_passes_in_each_form(schema: Any, text: Any, row: Any) -> None:
    jsonschema.validate(text.example, schema.json_schema)
    response = json.dumps(text.example, ensure_ascii=False)
    assert follows_instructions(response, row.checks)
    indented = json.dumps(text.example, indent=2)
    assert follows_instructions(f"```json\n{indented}\n```", row.checks)


@each
def test_other_responses_fail(schema: Any, text: Any, row: Any) -> None:
    response = json.dumps(text.example)
    shown = json.dumps(schema.json_schema)
    others = [json.dumps(one.example) for one in schema.texts.values() if one is not text]
    for wrong in (*WRONG, *others, row.prompt, shown, response[:-1], f"{response} {response}"):
        assert not follows_instructions(wrong, row.checks), wrong


@each
def test_a_changed_value_fails(schema: Any, text: Any, row: Any) -> None:
    for changed in variants(text.example):
        assert not follows_instructions(json.dumps(changed), row.checks), changed


def variants(value: Any) -> list[Any]:
    """Return the value with each of its parts changed, one at a time."""
    if isinstance(value, dict):
        parts = [{**value, key: one} for key in value for one in variants(value[key])]
        return [*parts, *({k: v for k, v in value.items() if k != key} for key in value)]
    if isinstance(value, list):
        parts = [
            [*value[:at], one, *value[at + 1 :]]
            for at in range(len(value))
            for one in variants(value[at])
        ]
        return [*parts, value[:-1], [*value, value[-1]]]
    return [f"{value} x", 987654, not value if isinstance(value, bool) else True]


@each
def test_the_schema_is_closed_and_says_what_is_required(schema: Any, text: Any, row: Any) -> None:
    assert json.dumps(schema.json_schema) in row.prompt
    assert text.text in row.prompt
    objects = [schema.json_schema] if schema.json_schema["type"] == "object" else []
    for one in objects:
        assert one["required"] == list(one["properties"])
        assert one["additionalProperties"] is False


def test_further_right_values_are_named_by_their_place() -> None:
    schema = required_values({"a": {"b": "x"}, "c": [1, 2]}, {"a.b": ["y"], "c": [[2, 1]]})
    for value in ({"a": {"b": "y"}, "c": [2, 1]}, {"a": {"b": "x"}, "c": [1, 2.0]}):
        jsonschema.validate(value, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"a": {"b": "z"}, "c": [1, 2]}, schema)
