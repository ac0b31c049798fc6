"""JSON rows by number: where each stands is kept, and a row is read when it is asked for."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lora_kit.runtime.errors import DataError
from lora_kit.runtime.hashes import file_sha256

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What holds a list together, with the space that JSON allows around it.
SPACE = r"[ \t\n\r]*"
OPENING = re.compile(rf"\ufeff?{SPACE}\[{SPACE}")
COMMA = re.compile(rf"{SPACE},{SPACE}")
CLOSING = re.compile(rf"{SPACE}\]{SPACE}\Z")


@dataclass(frozen=True)
class JsonRows:
    """The rows of a file of JSON lines, or of a JSON list.

    Attributes:
        path: the file that is read.
        shown: what messages call it: where it was compressed, the file that it was unpacked from.
        offsets: (rows,) int64, the byte that each begins at.
        lengths: (rows,) int64, bytes.
        lines: (rows,) int64, the number of its line, from 1; `None` for a list.
    """

    path: Path
    shown: Path
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    lines: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    def origin(self, number: int) -> str:
        """`file:line`, or `file[number]` of a list."""
        if self.lines is None:
            return f"{self.shown}[{number}]"
        return f"{self.shown}:{self.lines[number]}"

    def digest(self) -> str:
        """The sha256 of the file."""
        return file_sha256(self.path)

    def take(self, numbers: Sequence[int]) -> list[object]:
        """Some rows.

        Raises:
            DataError: naming the line that is no UTF-8 text or no JSON.
        """
        try:
            with self.path.open("rb") as stream:
                values = []
                for number in numbers:
                    stream.seek(int(self.offsets[number]))
                    values.append(self._value(stream.read(int(self.lengths[number])), number))
                return values
        except OSError as error:
            raise DataError(f"{self.shown}: cannot be read: {error}") from error

    def _value(self, text: bytes, number: int) -> object:
        try:
            return json.loads(text.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{self.origin(number)}: not UTF-8 text: {error}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.origin(number)}: not valid JSON: {error}") from error


def index_lines(path: Path, shown: Path | None = None) -> JsonRows:
    """Find the lines of a file that are not blank, in one pass that keeps none of them.

    Args:
        path: of the file.
        shown: what messages call it, if not that.

    Raises:
        DataError: if it cannot be read.
    """
    offsets, lengths, lines = array("q"), array("q"), array("q")
    position = 0
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                text = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
                if text.strip():
                    offsets.append(position + len(line) - len(text))
                    lengths.append(len(text))
                    lines.append(number)
                position += len(line)
    except OSError as error:
        raise DataError(f"{shown or path}: cannot be read: {error}") from error
    return JsonRows(path, shown or path, _int64(offsets), _int64(lengths), _int64(lines))


def index_list(path: Path, shown: Path | None = None) -> JsonRows:
    """Find the values of a JSON list; its text is in memory meanwhile, its values are not.

    Args:
        path: of the file.
        shown: what messages call it, if not that.

    Raises:
        DataError: if the file cannot be read or is no JSON list.
    """
    offsets, lengths = array("q"), array("q")
    try:
        # Line ends as they are, for they count.
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
        raise DataError(f"{shown or path}: cannot be read as JSON: {error}") from error
    return JsonRows(path, shown or path, _int64(offsets), _int64(lengths))


def _list_values(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each value of a JSON list begins and ends, in characters.

    Raises:
        ValueError: if it is no JSON list.
    """
    decoder = json.JSONDecoder()
    opening = OPENING.match(text)
    if not opening:
        found = decoder.raw_decode(text.lstrip("\ufeff \t\n\r"))[0]
        raise ValueError(f"a list of objects is wanted, found {type(found).__name__}")
    start, closing = opening.end(), CLOSING.match(text, opening.end())
    while not closing:
        _, end = decoder.raw_decode(text, start)
        yield start, end
        comma, closing = COMMA.match(text, end), CLOSING.match(text, end)
        if not comma and not closing:
            raise ValueError(f"`,` or the list's end is wanted at character {end}")
        start = comma.end() if comma else end


def _int64(values: array[int]) -> NDArray[np.int64]:
    return np.frombuffer(values, dtype=np.int64)
