"""Work that the processes of a machine would all do is done by one of them."""

import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_kit.data.files import datafiles, delimited
from lora_kit.data.files.datafiles import decompressed_file
from lora_kit.data.files.delimited import load_delimited
from lora_kit.modeling import features
from lora_kit.modeling.features import cached_features
from lora_kit.runtime.locks import one_process_at_a_time

ROOT = Path(__file__).parents[2]
PROCESS = """
import sys
from pathlib import Path
from lora_kit.runtime.locks import one_process_at_a_time
result, log = Path(sys.argv[1]), Path(sys.argv[2])
with one_process_at_a_time(result):
    if not result.exists():
        with log.open("a") as stream:
            stream.write("worked\\n")
        result.write_text("done")
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lora_kit"


def test_of_several_processes_one_works(tmp_path: Path) -> None:
    result, log = tmp_path / "result", tmp_path / "log"
    with one_process_at_a_time(result):
        running = [
            subprocess.Popen(
                [sys.executable, "-c", PROCESS, str(result), str(log)],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            for _ in range(3)
        ]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert log.read_text().splitlines() == ["worked"]


def test_a_cache_that_cannot_be_written_has_no_lock(tmp_path: Path, cache: Path) -> None:
    cache.mkdir()
    (cache / "locks").write_text("a file")
    with one_process_at_a_time(tmp_path / "result"):
        pass
    assert (cache / "locks").read_text() == "a file"


@contextmanager
def finished_by_another(result: Path, of_another: Path) -> Iterator[None]:
    """Stand in for the lock: it is free once another process has made the result."""
    result.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(of_another, result)
    yield


@pytest.mark.parametrize("kind", ["packed", "table", "features"])
def test_what_another_process_made_meanwhile_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    table, packed = tmp_path / "t.csv", tmp_path / "t.jsonl.gz"
    table.write_text("text,label\nhello,1\n")
    packed.write_bytes(gzip.compress(b'{"text": "hello"}\n'))
    values = torch.arange(3.0)
    monkeypatch.setattr(features, "_key", lambda *_: "key")
    owner, work, function = {
        "packed": (datafiles, "shutil", lambda: decompressed_file(packed).read_text()),
        "table": (delimited, "_convert", lambda: load_delimited(table, ".csv", table).to_list()),
        "features": (features, "save_file", lambda: cached_features(None, None, "", made).tolist()),
    }[kind]
    made: Any = lambda: values  # noqa: E731
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    expected = function()
    (result,) = [path for path in (tmp_path / "first").rglob("*") if is_result(path)]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    monkeypatch.setattr(
        owner, "one_process_at_a_time", lambda path: finished_by_another(path, result)
    )
    monkeypatch.setattr(owner, work, None)
    assert function() == expected


def is_result(path: Path) -> bool:
    return path.is_file() and not {"hashes", "locks"} & {*path.parts}
