"""JSON Schemas: responses that are valid, and schemas that cannot judge any."""

import pytest

from lora_kit.metrics.json_schemas import check_schema, json_schema

POINT = {
    "type": "object",
    "properties": {"x": {"type": "number"}, "name": {"type": ["string", "null"]}},
    "required": ["x", "name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "response",
    [
        '{"x": 1, "name": null}',
        '\n{"name": "a", "x": 1.5}\n',
        '```json\n{\n  "x": 1,\n  "name": "a"\n}\n```',
        '<think>{"x": 0}</think>\n{"x": 1, "name": "a"}',
    ],
)
def test_a_valid_value_passes(response: str) -> None:
    assert json_schema(response, POINT)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "x is 1",
        '{"x": 1}',
        '{"x": "1", "name": null}',
        '{"x": true, "name": null}',
        '{"x": 1, "name": null, "y": 2}',
        '{"x": NaN, "name": null}',
        '{"x": 1, "x": 2, "name": null}',
        '{"x": 1, "name": null} and more',
        'Here it is: {"x": 1, "name": null}',
        '{"x": 1, "name": null',
        "{'x': 1, 'name': null}",
        "[" * 100_000,
    ],
    ids=lambda response: response[:30],
)
def test_another_value_fails(response: str) -> None:
    assert not json_schema(response, POINT)


def test_references_within_the_schema_are_followed() -> None:
    tree = {
        "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
        "$ref": "#/$defs/node",
    }
    assert json_schema("[[], [[]]]", check_schema(tree))
    assert not json_schema("[[], [1]]", tree)
    assert not json_schema("[" * 5000 + "]" * 5000, tree)


def test_a_property_may_be_called_like_a_reference() -> None:
    schema = {"properties": {"$ref": {"type": "string"}}}
    assert not json_schema('{"$ref": 1}', check_schema(schema))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, r"type: 'objekt' is not valid .*\(got 'objekt'\)\. Fix: correct"),
        ({"properties": {"a": {"minimum": "1"}}}, r"properties\.a\.minimum: .*\(got '1'\)"),
        ({"pattern": "("}, r"pattern: .*\(got '\('\)"),
        ({"$ref": "https://example.org/a.json"}, r"\$ref: only references within .*https://exam"),
        ({"items": {"$ref": "other.json#/a"}}, r"\$ref: only references within"),
        ({"$ref": "#/$defs/a"}, r"\$ref: leads nowhere \(got '#/\$defs/a'\)"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, r"\$ref: leads nowhere"),
        ({"$ref": "#"}, r"\$ref: leads nowhere"),
        ({"const": {1: 2}}, "expected a mapping of JSON values"),
        ([], "expected a mapping of JSON values"),
    ],
)
def test_a_schema_that_cannot_judge_is_refused(schema: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_schema(schema)
