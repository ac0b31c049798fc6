"""Entries put aside on disk by number, to be read in another order than they come in."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np

from lora_kit.evaluation.ledger import Entry


class Shelf:
    """A file of entries without a name, gone when it is closed; 16 bytes of memory an entry."""

    def __init__(self, directory: Path, size: int):
        """Of so many numbers from 0, beside what is made of them, where there is room."""
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed on exit
        self._places = np.zeros((size, 2), dtype=np.int64)
        self._end = 0

    def close(self) -> None:
        """Let go of the file, and of all that is in it."""
        self._file.close()

    def put(self, number: int, entry: Entry) -> None:
        """Put an entry aside; the last one of a number stays."""
        line = json.dumps(entry.to_row()).encode("ascii")
        self._file.write(line)
        self._places[number] = self._end, len(line)
        self._end += len(line)

    def get(self, number: int) -> Entry:
        """The entry of a number, once all are put aside."""
        self._file.flush()
        start, length = map(int, self._places[number])
        return Entry.of(json.loads(os.pread(self._file.fileno(), length, start)))
