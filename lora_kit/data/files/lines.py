"""Random access to JSON rows by an index of their positions in the file."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lora_kit.data.strict_json import STRICT
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.hash_cache import cached_sha256

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Delimiters of a list, with the white space that JSON allows around them.
SPACE = r"[ \t\n\r]*"
OPENING = re.compile(rf"\ufeff?{SPACE}\[{SPACE}")
COMMA = re.compile(rf"{SPACE},{SPACE}")
CLOSING = re.compile(rf"{SPACE}\]{SPACE}\Z")


@dataclass(frozen=True)
class JsonRows:
    """Rows of a JSON Lines file or of a JSON list.

    Attributes:
        path: file to read.
        original: path in error messages and origins; the compressed file if `path` is a
            decompressed copy.
        offsets: (rows,) int64, first byte of each row.
        lengths: (rows,) int64, bytes of each row.
        lines: (rows,) int64, line number of each row, from 1; `None` for a list.
    """

    path: Path
    original: Path
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    lines: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    def origin(self, number: int) -> str:
        """Return the location of a row: `file:line`, or `file[number]` for a list."""
        if self.lines is None:
            return f"{self.original}[{number}]"
        return f"{self.original}:{self.lines[number]}"

    def digest(self) -> str:
        """Return the sha256 of the file."""
        return cached_sha256([self.path])[0]

    def take(self, numbers: Sequence[int]) -> list[object]:
        """Read the rows of the given indices.

        Raises:
            DataError: if the file cannot be read, or a row is not UTF-8 or not JSON; the message
                names the line.
        """
        try:
            with self.path.open("rb") as stream:
                values = []
                for number in numbers:
                    stream.seek(int(self.offsets[number]))
                    values.append(self._value(stream.read(int(self.lengths[number])), number))
                return values
        except OSError as error:
            raise DataError(
                f"{self.original}: cannot be read ({error}). Fix: check that the file exists and "
                "is readable"
            ) from error

    def _value(self, text: bytes, number: int) -> object:
        try:
            value = STRICT.decode(text.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.origin(number)}: not UTF-8 text (got {error}). Fix: convert the file to "
                "UTF-8"
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{self.origin(number)}: not valid JSON (got {error}). Fix: correct the row"
            ) from error
        if SURROGATE.search(text):
            _refuse_surrogates(value, self.origin(number))
        return value


# Escape of half a character; two of them in order make a whole one.
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _refuse_surrogates(value: object, place: str, field: str = "") -> None:
    """Refuse half characters, which no tokenizer and no file can hold.

    Raises:
        DataError: if a key or a text has one; the message names the field.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_surrogates(key, place, "a key")
            _refuse_surrogates(inner, place, f"{field}.{key}" if field else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _refuse_surrogates(inner, place, f"{field}[{number}]")
    elif isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise DataError(
            f"{place}: {field}: half of a surrogate pair is no character (got {value!a:.60})."
            " Fix: write the whole character, or remove it"
        )


def index_lines(path: Path, original: Path) -> JsonRows:
    """Index the non-blank lines of a JSON Lines file in one pass, without holding them in memory.

    Args:
        path: file to read.
        original: path in error messages and origins.

    Raises:
        DataError: if the file cannot be read, or begins with a list.
    """
    offsets, lengths, lines = array("q"), array("q"), array("q")
    position = 0
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                text = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
                if text.strip():
                    if not lines and text.lstrip().startswith(b"["):
                        raise DataError(
                            f"{original}:{number}: a row must be an object (got list). Fix: write "
                            "one object per line, or rename a file of one JSON list to .json"
                        )
                    offsets.append(position + len(line) - len(text))
                    lengths.append(len(text))
                    lines.append(number)
                position += len(line)
    except OSError as error:
        raise DataError(
            f"{original}: cannot be read ({error}). Fix: check that the file exists and is readable"
        ) from error
    return JsonRows(path, original, _int64(offsets), _int64(lengths), _int64(lines))


def index_json(path: Path, original: Path) -> JsonRows:
    """Index a `.json` file: one list, or JSON Lines, which `datasets` and others write as well.

    Args:
        path: file to read.
        original: path in error messages and origins.

    Raises:
        DataError: if the file cannot be read, or holds neither.
    """
    try:
        with path.open("rb") as stream:
            filled = (line.removeprefix(BYTE_ORDER_MARK).strip() for line in stream)
            first, second = [*islice(filter(None, filled), 2), b"", b""][:2]
        has_lines = bool(second) and isinstance(json.loads(first), dict)
    except (OSError, ValueError, RecursionError):
        has_lines = False
    return (index_lines if has_lines else index_list)(path, original)


def index_list(path: Path, original: Path) -> JsonRows:
    """Index the values of a JSON list; its text is held in memory meanwhile, its values are not.

    Args:
        path: file to read.
        original: path in error messages and origins.

    Raises:
        DataError: if the file cannot be read, or is not a JSON list.
    """
    offsets, lengths = array("q"), array("q")
    try:
        # Line ends must not be translated, since offsets are in bytes of the file.
        with path.open(encoding="utf-8", newline="") as stream:
            text = stream.read()
        position = last = 0
        for start, end in _list_values(text):
            position += len(text[last:start].encode())
            offsets.append(position)
            lengths.append(len(text[start:end].encode()))
            position += lengths[-1]
            last = end
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{original}: cannot be read as a JSON list (got {error}). Fix: write a list "
            "of objects, or one object per line in a .jsonl file"
        ) from error
    return JsonRows(path, original, _int64(offsets), _int64(lengths))


def _list_values(text: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each value of a JSON list, in characters.

    Raises:
        ValueError: if the text is not a JSON list.
    """
    decoder = json.JSONDecoder()
    opening = OPENING.match(text)
    if not opening:
        value = decoder.raw_decode(text.lstrip("\ufeff \t\n\r"))[0]
        raise ValueError(f"{type(value).__name__} instead of a list")
    start, closing = opening.end(), CLOSING.match(text, opening.end())
    while not closing:
        _, end = decoder.raw_decode(text, start)
        yield start, end
        comma, closing = COMMA.match(text, end), CLOSING.match(text, end)
        if not comma and not closing:
            raise ValueError(f"neither `,` nor the list's end at character {end}")
        start = comma.end() if comma else end


def _int64(values: array[int]) -> NDArray[np.int64]:
    return np.frombuffer(values, dtype=np.int64)
