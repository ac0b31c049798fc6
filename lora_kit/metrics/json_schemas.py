"""Responses that are one JSON value, valid under a JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.validators import validator_for
from referencing.exceptions import Unresolvable

from lora_kit.metrics.json_values import STRICT_JSON, is_json_value
from lora_kit.metrics.response_text import unfenced, without_reasoning

# A value of each type, with which references are tried.
PROBES: tuple[Any, ...] = (None, True, 0, "", [], {})
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def json_schema(response: str, schema: Mapping[str, Any]) -> bool:
    """Check for one JSON value that is valid under the schema, optionally in a code fence."""
    try:
        value = STRICT_JSON.decode(unfenced(without_reasoning(response)).strip())
        return bool(_validator(schema).is_valid(value))
    except (ValueError, RecursionError):
        return False


def check_schema(schema: object) -> Mapping[str, Any]:
    """Return a JSON Schema (2020-12, unless `$schema` says otherwise) that can judge a response.

    Raises:
        ValueError: if the schema is invalid, or has a reference to something outside of it.
    """
    if not isinstance(schema, Mapping) or not is_json_value(schema):
        raise ValueError(
            f"expected a mapping of JSON values (got {schema!r:.80}). Fix: write the "
            "schema, and quote dates"
        )
    for name, reference in _references(schema):
        # Nothing is downloaded, and a response must not be judged by what lies elsewhere.
        if not reference.startswith("#"):
            raise ValueError(
                f"{name}: only references within the schema are read (got "
                f"{reference!r:.80}). Fix: copy the part into $defs, and write #/$defs/NAME"
            )
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(dict(schema))
    except SchemaError as error:
        place = ".".join(map(str, error.absolute_path)) or "the schema"
        raise ValueError(
            f"{place}: {error.message:.200} (got {error.instance!r:.80}). Fix: correct the schema"
        ) from error
    _try_references(schema)
    return schema


def _validator(schema: Mapping[str, Any]) -> Any:
    return validator_for(schema, default=Draft202012Validator)(schema)


def _try_references(schema: Mapping[str, Any]) -> None:
    """Follow every reference once.

    Raises:
        ValueError: if a reference leads nowhere, or round in a circle.
    """
    for name, reference in _references(schema):
        validator = _validator({**schema, "allOf": [{name: reference}]})
        try:
            for value in PROBES:
                validator.is_valid(value)
        except (Unresolvable, RecursionError) as error:
            raise ValueError(
                f"{name}: leads nowhere (got {reference!r:.80}). Fix: write "
                "#/$defs/NAME of a part of the schema"
            ) from error


def _references(value: object) -> Iterator[tuple[str, str]]:
    """Yield the references of a schema with their keywords; a property may have the same name."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            if key in REFERENCES and isinstance(one, str):
                yield key, one
            else:
                yield from _references(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _references(one)
