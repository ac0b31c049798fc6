"""JSON as the standard has it: no key twice, no number that is none, no half characters."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ValueError: if a key stands twice, of which `json` by itself keeps the last.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        key, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {key!r} {count} times in one object")
    return value


def _number(text: str) -> float:
    """Return a JSON number.

    Raises:
        ValueError: if it is none, or too large.
    """
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text}, which is no finite number")
    return value


# Decoder that refuses with ValueError what `json` by itself takes beyond the standard.
STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=_number)


def decode_cell(value: Any) -> Any:
    """Return a value of a row, of which a CSV file holds lists and objects as JSON text.

    A text is decoded; one that is no JSON gives `None`. Other values are returned as they are.
    """
    if not isinstance(value, str):
        return value
    try:
        return STRICT.decode(value)
    except ValueError:
        return None
