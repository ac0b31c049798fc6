"""What is measured so far, on disk after each batch, so that a killed run goes on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lora_kit.evaluation.ledger import Entry

PREFIX = ".journal-"


class Journal:
    """Entries in JSON lines, one file a process, each with the key of the work that it is of.

    The key says what the entry's result depends on besides the item; entries of other keys, of an
    earlier adapter or suite, are left out.
    """

    def __init__(self, directory: Path, process: int):
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._path = directory / f"{PREFIX}{process}.jsonl"
        _drop_broken_end(self._path)

    def entries(self, keys: Sequence[str]) -> list[tuple[str, Entry]]:
        """Everything that any process has written under one of these keys, once."""
        wanted = set(keys)
        found: dict[tuple[str, str], tuple[str, Entry]] = {}
        for path in sorted(self._directory.glob(f"{PREFIX}*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # the end of another process's file, cut in the middle of a line
                if record["key"] in wanted:
                    entry = Entry.of(record["entry"])
                    found[record["key"], entry.item] = record["key"], entry
        return list(found.values())

    def append(self, records: Sequence[tuple[str, Entry]]) -> None:
        """Add entries; on disk when this returns."""
        lines = [json.dumps({"key": key, "entry": asdict(entry)}) + "\n" for key, entry in records]
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write("".join(lines))
            stream.flush()
            os.fsync(stream.fileno())

    def discard(self) -> None:
        """Remove the files of all processes: the ledger holds it all now."""
        for path in self._directory.glob(f"{PREFIX}*.jsonl"):
            path.unlink(missing_ok=True)


def _drop_broken_end(path: Path) -> None:
    """Cut off a last line without an end, which a killed process left."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as stream:
            stream.truncate(whole)
