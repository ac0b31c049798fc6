"""JSON lines, with the number of the line that is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from lora_kit.errors import DataError


def json_lines(path: Path) -> Iterator[tuple[object, str]]:
    """Yield the value of each line that is not blank, and `file:line`.

    Raises:
        DataError: if the file is no UTF-8 text, or a line no JSON.
    """
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield json.loads(line), f"{path}:{number}"
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{number}: not valid JSON: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
