"""Tokenization of rows into Arrow, in memory or cached on disk.

A cache entry is a directory with the Arrow file and the counts taken while writing it. Entries are
written under a temporary name and then renamed, so that an entry is either complete or absent; if
two processes write the same entry, the later one finds the first one's.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lora_kit.data.prepared import SCHEMA, Counts, PreparedData, Tally
from lora_kit.data.row_sets import Rows, read_blocks
from lora_kit.data.rows import Row
from lora_kit.data.supervision import Example
from lora_kit.data.tokenization import tokenize_rows
from lora_kit.data.workers import Block, Encode, encode_in_workers
from lora_kit.recipe.data import DataSpec
from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.console import meter
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.files import read_json, shared_directory, write_json
from lora_kit.runtime.hashes import json_sha256
from lora_kit.runtime.machine import cores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Raise it when the entries change for a reason other than the code of this package.
VERSION = 1
# Tokenizing fewer rows takes no longer than the cache lookup.
MIN_CACHED_ROWS = 2_000
# Seconds that tokenizing has to take still before workers are started, which import libraries for
# some of them; and seconds after which that can be told.
WORKER_SECONDS, FIRST_SECONDS = 20.0, 2.0
EXAMPLES, SUMMARY = "examples.arrow", "summary.json"


def text_encoder(tokenizer: PreTrainedTokenizerBase, spec: DataSpec) -> Encode:
    """Return a function that tokenizes conversations and texts."""
    return partial(
        tokenize_rows,
        tokenizer=tokenizer,
        max_length=spec.max_length,
        train_on=spec.train_on,
        split=spec.overflow == "split",
    )


def tokenize_in_memory(rows: Sequence[Row], encode: Encode, together: bool = False) -> PreparedData:
    """Tokenize rows in memory, without a cache.

    Args:
        rows: rows to tokenize.
        encode: function that tokenizes a block of rows.
        together: if true, the examples of a row are used or dropped together.

    Raises:
        DataError: if a row is malformed.
    """
    sink = pa.BufferOutputStream()
    tally = _write(rows, encode, sink, together)
    table = pa.ipc.open_stream(sink.getvalue()).read_all()
    return PreparedData(table, tally.counts(), tally.digest(), tuple(tally.dropped))


def tokenize_cached(rows: Rows, tokenizer: PreTrainedTokenizerBase, spec: DataSpec) -> PreparedData:
    """Tokenize rows, or read them from the cache; one process per machine tokenizes.

    Raises:
        DataError: if a row is malformed, or the cache entry cannot be read.
    """
    from lora_kit.runtime.processes import process_state

    directory = cache_directory() / "examples" / _key(rows, tokenizer, spec)
    with process_state().local_main_process_first():
        if not directory.is_dir():
            _write_entry(rows, tokenizer, spec, directory)
    summary = read_json(directory / SUMMARY, DataError)
    try:
        table = pa.ipc.open_stream(pa.memory_map(str(directory / EXAMPLES))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{directory}: cannot be read ({error}). Fix: delete it") from error
    return PreparedData(
        table,
        Counts.from_dict(summary["counts"]),
        summary["digest"],
        tuple(summary["dropped"]),
        directory / EXAMPLES,
    )


def _write_entry(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, spec: DataSpec, directory: Path
) -> None:
    with shared_directory(directory) as temporary:
        with pa.OSFile(str(temporary / EXAMPLES), "wb") as sink:
            tally = _write(rows, text_encoder(tokenizer, spec), sink, workers=cores() > 1)
        summary = {
            "counts": tally.counts().to_dict(),
            "digest": tally.digest(),
            "dropped": tally.dropped,
        }
        write_json(temporary / SUMMARY, summary)


def _write(
    rows: Sequence[Row], encode: Encode, sink: Any, together: bool = False, workers: bool = False
) -> Tally:
    """Tokenize rows and write them to an Arrow stream, one block at a time."""
    names = [source.name for source in rows.sources] if isinstance(rows, Rows) else ["rows"]
    tally = Tally(names)
    with (
        pa.ipc.new_stream(sink, SCHEMA) as writer,
        meter("tokenizing", len(rows), visible=len(rows) >= MIN_CACHED_ROWS) as progress,
    ):
        for (block, parts), encoded in _encoded_blocks(rows, encode, workers):
            used, sources = [], []
            for row, part, examples in zip(block, parts, encoded, strict=True):
                supervised = tally.add(row, part, examples, together)
                used += supervised
                sources += [part] * len(supervised)
            if used:
                writer.write_batch(tally.record(used, sources))
            progress.advance(len(block))
    return tally


def _encoded_blocks(
    rows: Sequence[Row], encode: Encode, workers: bool
) -> Iterator[tuple[Block, Iterable[Sequence[Example]]]]:
    """Yield each block with the examples of its rows; by workers once it shows to take long."""
    blocks, started, done = read_blocks(rows), time.monotonic(), 0
    for block in blocks:
        yield block, encode(block[0])
        done += len(block[0])
        seconds = time.monotonic() - started
        left = seconds / done * (len(rows) - done)
        if workers and seconds >= FIRST_SECONDS and left >= WORKER_SECONDS:
            break
    else:
        return
    yield from encode_in_workers(blocks, encode)


def _key(rows: Rows, tokenizer: PreTrainedTokenizerBase, spec: DataSpec) -> str:
    """Return the cache key: a sha256 of everything that determines the examples."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    parts = {
        "version": VERSION,
        "code": code.hexdigest(),
        "libraries": [version(name) for name in ("transformers", "tokenizers", "jinja2")],
        "rows": rows.digest(),
        "names": [source.name for source in rows.sources],
        "tokenizer": _tokenizer_digest(tokenizer),
        "train_on": spec.train_on,
        "max_length": spec.max_length,
        "overflow": spec.overflow,
    }
    return json_sha256(parts)


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash a fast tokenizer: vocabulary, merges, special tokens and chat template."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Settings left over from the last call; each call sets its own.
    state["padding"] = state["truncation"] = None
    parts = [state, tokenizer.chat_template, tokenizer.special_tokens_map]
    return json_sha256(parts)
