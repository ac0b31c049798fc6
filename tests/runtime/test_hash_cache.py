"""Hashes that several processes share, and that no changed file may find."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_kit.runtime import hash_cache, hashes
from lora_kit.runtime.hash_cache import cached_sha256
from lora_kit.runtime.hashes import REMEMBERED_BYTES, changed_files, file_sha256

ROOT = Path(__file__).parents[2]
HOURS = 1e4


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that also keeps the hashes of files that were just written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hash_cache, "SETTLED_SECONDS", 0.0)
    return tmp_path / "cache" / "lora_kit" / "hashes"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read, as by a new process for each file."""
    names: list[str] = []

    def counted(path: Path) -> str:
        names.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(hashes, "_hash", counted)
    monkeypatch.setattr(hashes, "_known", Forgetful())
    return names


class Forgetful(dict[tuple[int, ...], str]):
    def __contains__(self, key: object) -> bool:
        return False


def weights(folder: Path, name: str = "model.safetensors", fill: bytes = b"a") -> Path:
    path = folder / name
    path.write_bytes(fill * REMEMBERED_BYTES)
    return path


def test_a_second_process_reads_no_weights(tmp_path: Path, cache: Path, read: list[str]) -> None:
    files = [weights(tmp_path, "one", b"a"), weights(tmp_path, "two", b"b")]
    small = tmp_path / "small"
    small.write_bytes(b"c")
    expected = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (*files, small)]
    assert cached_sha256([*files, small]) == expected
    read.clear()
    assert cached_sha256([*files, small]) == expected
    assert set(read) == {"small"}
    # One of them is new.
    three = weights(tmp_path, "three", b"d")
    read.clear()
    assert cached_sha256([*files, three])[:2] == expected[:2]
    assert read == ["three"]


def test_a_file_with_another_content_is_read_again(
    tmp_path: Path, cache: Path, read: list[str]
) -> None:
    """A change in place and a replacement, both of the same size and with the same mtime."""
    path = weights(tmp_path)
    first = cached_sha256([path])
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    weights(tmp_path, fill=b"b")
    os.utime(path, ns=times)
    second = cached_sha256([path])
    weights(tmp_path, "other", b"c").replace(path)
    os.utime(path, ns=times)
    third = cached_sha256([path])
    assert len({*first, *second, *third}) == 3
    assert third == [hashlib.sha256(path.read_bytes()).hexdigest()]


def test_a_file_that_changed_just_now_is_not_kept(
    tmp_path: Path, cache: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_cache, "SETTLED_SECONDS", HOURS)
    path = weights(tmp_path)
    cached_sha256([path])
    assert cached_sha256([path]) == [file_sha256(path)]
    assert read == [path.name] * 3
    assert not list(cache.glob("*.json"))


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights(tmp_path)

    def changing(path: Path) -> str:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        weights(tmp_path, fill=b"b")
        return found

    monkeypatch.setattr(hashes, "_hash", changing)
    cached_sha256([path])
    assert not list(cache.glob("*.json"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"sha256": "', '"sha256": "x'),
        lambda text: text.replace('"path": "', '"path": "x'),
        lambda text: json.dumps(json.loads(text) | {"sha256": None}),
    ],
)
def test_a_damaged_entry_counts_as_none(
    tmp_path: Path, cache: Path, read: list[str], damage: object
) -> None:
    path = weights(tmp_path)
    expected = cached_sha256([path])
    (entry,) = cache.glob("*.json")
    sound = entry.read_text()
    entry.write_text(damage(sound))  # type: ignore[operator]
    read.clear()
    assert cached_sha256([path]) == expected
    assert read == [path.name]
    assert entry.read_text() == sound


def test_a_release_reads_its_files_whatever_the_cache_says(tmp_path: Path, cache: Path) -> None:
    path = weights(tmp_path)
    (true,) = cached_sha256([path])
    (entry,) = cache.glob("*.json")
    entry.write_text(entry.read_text().replace(true, "0" * 64))
    assert cached_sha256([path]) == ["0" * 64]
    assert file_sha256(path) == true
    assert changed_files(tmp_path, {path.name: "0" * 64}) == [path.name]


def test_a_cache_that_cannot_be_written_changes_no_hash(
    tmp_path: Path, cache: Path, read: list[str]
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file")
    path = weights(tmp_path)
    assert cached_sha256([path]) == cached_sha256([path]) == [file_sha256(path)]
    assert read == [path.name] * 3


PROCESS = """
import sys
from pathlib import Path
from lora_kit.runtime import hash_cache, hashes
hash_cache.SETTLED_SECONDS = 0.0
read = []
compute = hashes._hash
hashes._hash = lambda path: read.append(path) or compute(path)
digests = hash_cache.cached_sha256([Path(path) for path in sys.argv[1:]])
print(len(read), *digests)
"""


def test_of_several_processes_one_reads(tmp_path: Path, cache: Path) -> None:
    files = [str(weights(tmp_path, name, name.encode())) for name in "abc"]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, *files],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = [process.communicate()[0].split() for process in running]
    assert sorted(int(count) for count, *_ in said) == [0, 0, 3]
    expected = cached_sha256([Path(file) for file in files])
    assert [digests for _, *digests in said] == [expected] * 3
