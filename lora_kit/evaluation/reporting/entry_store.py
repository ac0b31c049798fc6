"""Temporary storage of entries on disk, to read them in another order than they arrive."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np

from lora_kit.evaluation.ledger import Entry


class EntryStore:
    """Unnamed temporary file of entries, addressed by number; 16 bytes of memory an entry."""

    def __init__(self, directory: Path, size: int):
        """Create the file.

        Args:
            directory: directory on the file system to use; the one that the results go to.
            size: number of entries, which are numbered from 0.
        """
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed on exit
        self._places = np.zeros((size, 2), dtype=np.int64)
        self._end = 0

    def close(self) -> None:
        """Delete the file."""
        self._file.close()

    def put(self, number: int, entry: Entry) -> None:
        """Store an entry under a number, replacing an earlier one."""
        line = json.dumps(entry.to_row()).encode("ascii")
        self._file.write(line)
        self._places[number] = self._end, len(line)
        self._end += len(line)

    def get(self, number: int) -> Entry:
        """Return the entry of a number; call it only after every `put`."""
        self._file.flush()
        start, length = map(int, self._places[number])
        return Entry.from_row(json.loads(os.pread(self._file.fileno(), length, start)))
