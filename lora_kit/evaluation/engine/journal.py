"""Journals: results on disk after each batch, so that a killed evaluation can be resumed.

Each process writes a journal of its own. The main process reads all of them to write the ledger.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lora_kit.evaluation.ledger import Entry

PREFIX = ".journal-"
# Name, in place of a process index, of the journal with entries taken from an earlier ledger.
REUSED = "kept"
# Bytes read at a time when searching for the end of the last complete line.
BLOCK = 1 << 16


class Journal:
    """Journal of one process: a JSON Lines file of ledger entries, each with its work key.

    The key identifies everything that a result depends on besides the item, such as the adapter
    and the suite; entries with other keys are ignored when journals are read.
    """

    def __init__(self, directory: Path, process: int | str):
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._path = journal_path(directory, process)
        drop_broken_end(self._path)

    def done(self, keys: Collection[str]) -> dict[str, set[str]]:
        """Return, for each key, ids of the items that any process has written."""
        items: dict[str, set[str]] = {key: set() for key in keys}
        for path in _paths(self._directory):
            for record, _, _ in _records(path):
                if record["key"] in items:
                    items[record["key"]].add(record["entry"]["item"])
        return items

    def open(self) -> None:
        """Create the file, which shows other processes that the directory is shared."""
        self._path.touch()

    def append(self, records: Sequence[tuple[str, Entry]]) -> None:
        """Append entries with their keys and flush them to disk."""
        lines = [json.dumps({"key": key, "entry": e.to_row()}) + "\n" for key, e in records]
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write("".join(lines))
            stream.flush()
            os.fsync(stream.fileno())

    def discard(self) -> None:
        """Remove the journals of all processes; called once the ledger is written."""
        for path in _paths(self._directory):
            path.unlink(missing_ok=True)


class Journals:
    """Random access to the entries in the journals of all processes.

    Only item ids and file offsets are held in memory, not the entries.
    """

    def __init__(self, directory: Path, keys: Collection[str]):
        self._directory = directory
        self._numbers: dict[str, dict[str, int]] = {key: {} for key in keys}
        self._files, self._starts, self._lengths = array("I"), array("Q"), array("Q")
        self._items: dict[str, str] = {}
        self._open = ExitStack()
        self._descriptors: list[int] = []
        # Number of each file, and the bytes of it that have been read.
        self._read: dict[Path, tuple[int, int]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read what was written since the last time."""
        for path in _paths(self._directory):
            number, end = self._read.get(path, (len(self._descriptors), 0))
            if number == len(self._descriptors):
                self._descriptors.append(self._open.enter_context(path.open("rb")).fileno())
            for record, start, length in _records(path, end):
                end = start + length
                self._add(record, number, start, length)
            self._read[path] = number, end

    def _add(self, record: Mapping[str, Any], file: int, start: int, length: int) -> None:
        numbers = self._numbers.get(record["key"])
        if numbers is None:
            return
        item = record["entry"]["item"]
        # Arms share one string per item id. A later record replaces an earlier one.
        numbers[self._items.setdefault(item, item)] = len(self._files)
        self._files.append(file)
        self._starts.append(start)
        self._lengths.append(length)

    def close(self) -> None:
        """Close the files."""
        self._open.close()

    def items(self, key: str) -> Collection[str]:
        """Return ids of the items that have an entry under a key."""
        return self._numbers[key].keys()

    def entries(self, key: str) -> Iterator[Entry]:
        """Yield the entries of a key, one per item, sorted by item id."""
        for _, number in sorted(self._numbers[key].items()):
            line = os.pread(
                self._descriptors[self._files[number]], self._lengths[number], self._starts[number]
            )
            yield Entry.from_row(json.loads(line)["entry"])


def journal_path(directory: Path, process: int | str) -> Path:
    """Return the path of a process's journal."""
    return directory / f"{PREFIX}{process}.jsonl"


def _paths(directory: Path) -> list[Path]:
    """Return the paths of all journals, reused entries first, so that newer ones replace them."""
    reused = journal_path(directory, REUSED)
    return sorted(directory.glob(f"{PREFIX}*.jsonl"), key=lambda path: (path != reused, path))


def _records(path: Path, end: int = 0) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Yield the record of each line from an offset on, its offset and its length in bytes."""
    with path.open("rb") as stream:
        stream.seek(end)
        for line in stream:
            start, length = end, len(line)
            end += length
            try:
                record = json.loads(line)
            except ValueError:
                continue  # an incomplete last line, left by a killed process
            yield record, start, length


def drop_broken_end(path: Path) -> None:
    """Truncate an incomplete last line of a JSON Lines file, which a killed process left."""
    if not path.is_file():
        return
    with path.open("r+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        # Read backwards in blocks, since a journal may be larger than memory.
        position = end
        while position:
            start = max(position - BLOCK, 0)
            stream.seek(start)
            newline = stream.read(position - start).rfind(b"\n")
            if newline >= 0:
                position = start + newline + 1
                break
            position = start
        if position < end:
            stream.truncate(position)
