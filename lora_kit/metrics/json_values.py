"""JSON values in responses and in checks: strict parsing, equality, and plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands twice")
    return value


# Python's own reading takes NaN, and silently keeps the last of two equal keys.
STRICT_JSON = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_distinct_keys)


def is_json_value(value: object) -> bool:
    """Return true for a value that JSON can hold; YAML also reads dates and number keys."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_json_value(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_json_value, value))
    if isinstance(value, float):
        return value - value == 0  # neither NaN nor infinite
    return value is None or isinstance(value, str | int)


def json_equal(one: object, other: object) -> bool:
    """Compare as JSON: 1 equals 1.0 but not true; white space around texts is ignored."""
    if isinstance(one, str) and isinstance(other, str):
        return one.strip() == other.strip()
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(json_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(json_equal, one, other))
    return one == other
