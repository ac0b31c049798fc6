"""Rows tokenized once: written to Arrow while they are read, kept by the hash of all that matters.

An entry of the cache is a directory of the Arrow file and what was counted while it was written. It
is written under another name and then renamed, so that an entry is whole or absent, and of two
processes that write the same one the later finds it there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lora_kit.data.files.tables import BLOCK
from lora_kit.data.labelled import encode_rows
from lora_kit.data.prepared import SCHEMA, Counts, PreparedData, Tally
from lora_kit.data.row_sets import Rows
from lora_kit.data.rows import Row
from lora_kit.data.tokenization import tokenize_rows
from lora_kit.recipe.data import DataSpec
from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.console import meter
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.files import read_json, shared_directory, write_json
from lora_kit.runtime.hashes import json_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Raise it when what is written changes for another reason than the code of this package.
VERSION = 1
# Fewer rows are tokenized in the time that it takes to see whether they have been.
KEPT_FROM = 2_000
EXAMPLES, SUMMARY = "examples.arrow", "summary.json"


def in_memory(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    spec: DataSpec,
    classes: Sequence[str] = (),
) -> PreparedData:
    """Tokenize rows, and keep nothing on disk.

    Args:
        rows: to tokenize.
        tokenizer: of the backbone.
        spec: how they are read.
        classes: where a row's class is learned, all that there are.

    Raises:
        DataError: if a row is wrong.
    """
    sink = pa.BufferOutputStream()
    tally = _write(rows, tokenizer, spec, sink, classes)
    table = pa.ipc.open_stream(sink.getvalue()).read_all()
    return PreparedData(table, tally.counts(), tally.digest(), tuple(tally.dropped))


def kept(rows: Rows, tokenizer: PreTrainedTokenizerBase, spec: DataSpec) -> PreparedData:
    """Tokenize rows unless that was done before; of several processes, one a machine does it.

    Raises:
        DataError: if a row is wrong, or what is kept cannot be read.
    """
    from lora_kit.runtime.processes import process_state

    directory = cache_directory() / "examples" / _key(rows, tokenizer, spec)
    with process_state().local_main_process_first():
        if not directory.is_dir():
            _keep(rows, tokenizer, spec, directory)
    summary = read_json(directory / SUMMARY, DataError)
    try:
        table = pa.ipc.open_stream(pa.memory_map(str(directory / EXAMPLES))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{directory}: cannot be read; delete it: {error}") from error
    return PreparedData(
        table,
        Counts.from_dict(summary["counts"]),
        summary["digest"],
        tuple(summary["dropped"]),
        directory / EXAMPLES,
    )


def _keep(rows: Rows, tokenizer: PreTrainedTokenizerBase, spec: DataSpec, directory: Path) -> None:
    with shared_directory(directory) as temporary:
        with pa.OSFile(str(temporary / EXAMPLES), "wb") as sink:
            tally = _write(rows, tokenizer, spec, sink)
        summary = {
            "counts": tally.counts().to_dict(),
            "digest": tally.digest(),
            "dropped": tally.dropped,
        }
        write_json(temporary / SUMMARY, summary)


def _write(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    spec: DataSpec,
    sink: Any,
    classes: Sequence[str] = (),
) -> Tally:
    """Rows -> examples -> Arrow, a block at a time."""
    names = [source.name for source in rows.sources] if isinstance(rows, Rows) else ["rows"]
    tally = Tally(names)
    with (
        pa.ipc.new_stream(sink, SCHEMA) as writer,
        meter("tokenizing", len(rows), visible=len(rows) >= KEPT_FROM) as progress,
    ):
        for block, parts in _blocks(rows):
            used, sources = [], []
            several = (
                encode_rows(block, tokenizer, spec.max_length, classes)
                if classes
                else tokenize_rows(
                    block, tokenizer, spec.max_length, spec.train_on, spec.overflow == "split"
                )
            )
            for row, part, examples in zip(block, parts, several, strict=True):
                learned = tally.add(row, part, examples)
                used += learned
                sources += [part] * len(learned)
            if used:
                writer.write_batch(tally.record(used, sources))
            progress.advance(len(block))
    return tally


def _blocks(rows: Sequence[Row]) -> Iterator[tuple[list[Row], list[int]]]:
    """Some rows at a time, and the number of each one's source."""
    for start in range(0, len(rows), BLOCK):
        some = rows[start : start + BLOCK]
        if isinstance(some, Rows):
            yield some.read(), some.parts.tolist()
        else:
            yield list(some), [0] * len(some)


def _key(rows: Rows, tokenizer: PreTrainedTokenizerBase, spec: DataSpec) -> str:
    """The sha256 of all that decides what the rows become."""
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
    """Of all that a fast tokenizer goes by: vocabulary, merges, special tokens, chat template."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Of the call before; each call sets its own.
    state["padding"] = state["truncation"] = None
    known = [state, tokenizer.chat_template, tokenizer.special_tokens_map]
    return json_sha256(known)
