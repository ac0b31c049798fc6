"""What is measured so far, on disk after each batch: a killed run goes on from there.

The ledger is made from it too: each process writes a journal of its own, and the first one reads
them all.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lora_kit.evaluation.ledger import Entry

PREFIX = ".journal-"
# Of the ledger that an earlier evaluation has left, what is used again.
KEPT = "kept"
BLOCK = 1 << 16


class Journal:
    """Entries in JSON lines, one file a process, each with the key of the work that it is of.

    The key says what the entry's result depends on besides the item; entries of other keys, of an
    earlier adapter or suite, are left out.
    """

    def __init__(self, directory: Path, process: int | str):
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._path = journal_path(directory, process)
        _drop_broken_end(self._path)

    def done(self, keys: Collection[str]) -> dict[str, set[str]]:
        """Ids of the items that any process has written under each of these keys."""
        found: dict[str, set[str]] = {key: set() for key in keys}
        for path in _paths(self._directory):
            for record, _, _ in _records(path):
                if record["key"] in found:
                    found[record["key"]].add(record["entry"]["item"])
        return found

    def open(self) -> None:
        """Make the file, so that others see that this process writes to the same directory."""
        self._path.touch()

    def append(self, records: Sequence[tuple[str, Entry]]) -> None:
        """Add entries; on disk when this returns."""
        lines = [json.dumps({"key": key, "entry": e.to_row()}) + "\n" for key, e in records]
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write("".join(lines))
            stream.flush()
            os.fsync(stream.fileno())

    def discard(self) -> None:
        """Remove the files of all processes: the ledger holds it all now."""
        for path in _paths(self._directory):
            path.unlink(missing_ok=True)


class Journals:
    """The journals of all processes, to be read in any order.

    In memory are the ids of the items and where in the files their entries lie, not the entries.
    """

    def __init__(self, directory: Path, keys: Collection[str]):
        self._numbers: dict[str, dict[str, int]] = {key: {} for key in keys}
        self._files, self._starts, self._lengths = array("I"), array("Q"), array("Q")
        paths = _paths(directory)
        items: dict[str, str] = {}
        for number, path in enumerate(paths):
            for record, start, length in _records(path):
                of_key = self._numbers.get(record["key"])
                if of_key is None:
                    continue
                item = record["entry"]["item"]
                # The same items come again with each arm. What is written later is the newer.
                of_key[items.setdefault(item, item)] = len(self._files)
                self._files.append(number)
                self._starts.append(start)
                self._lengths.append(length)
        self._open = ExitStack()
        streams = [self._open.enter_context(path.open("rb")) for path in paths]
        self._descriptors = [stream.fileno() for stream in streams]

    def close(self) -> None:
        """Let go of the files."""
        self._open.close()

    def items(self, key: str) -> Collection[str]:
        """Ids of the items that have an entry under a key."""
        return self._numbers[key].keys()

    def entries(self, key: str) -> Iterator[Entry]:
        """The entries of a key, by item; one an item."""
        for _, number in sorted(self._numbers[key].items()):
            line = os.pread(
                self._descriptors[self._files[number]], self._lengths[number], self._starts[number]
            )
            yield Entry.of(json.loads(line)["entry"])


def journal_path(directory: Path, process: int | str) -> Path:
    """Where a process writes."""
    return directory / f"{PREFIX}{process}.jsonl"


def _paths(directory: Path) -> list[Path]:
    """Of all journals; what was kept comes first, so that what is measured again replaces it."""
    kept = journal_path(directory, KEPT)
    return sorted(directory.glob(f"{PREFIX}*.jsonl"), key=lambda path: (path != kept, path))


def _records(path: Path) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Of each line what it says, where it starts and how long it is, in bytes."""
    end = 0
    with path.open("rb") as stream:
        for line in stream:
            start, length = end, len(line)
            end += length
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the end of another process's file, cut in the middle of a line
            yield record, start, length


def _drop_broken_end(path: Path) -> None:
    """Cut off a last line without an end, which a killed process left."""
    if not path.is_file():
        return
    with path.open("r+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        # Backwards, since a journal may be larger than memory.
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
