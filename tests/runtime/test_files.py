"""Files and directories at any moment: for readers, and after a kill."""

import subprocess
import sys
from pathlib import Path

import pytest

from lora_kit.runtime import files
from lora_kit.runtime.files import exchange, whole_directory, whole_file, write_text
from lora_kit.runtime.temporaries import REPLACED

# Writes in forks that kill themselves before their first, second, ... call to the system, until one
# lives; each time, the next process has to leave the new content and nothing else.
KILLED_EVERYWHERE = """
import os, signal, sys
from pathlib import Path
from lora_kit.runtime import files
from lora_kit.runtime.temporaries import is_empty

kind, way, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
path = folder / "kept"
if way == "renamed":
    files.exchange = lambda *_: False

def write(text):
    if kind == "file":
        return files.write_text(path, text)
    with files.whole_directory(path) as temporary:
        for name in "ab":
            (temporary / name).write_text(text)

def read():
    if not path.exists():
        return None
    if kind == "file":
        return path.read_text()
    assert sorted(os.listdir(path)) == ["a", "b"], os.listdir(path)
    first, second = (path / "a").read_text(), (path / "b").read_text()
    assert first == second, (first, second)
    return first

def killed_at(number, text):
    child = os.fork()
    if child == 0:
        left = [number]
        def count(event, _):
            if event.startswith(("open", "os.", "fcntl.", "shutil.", "ctypes.")):
                left[0] -= 1
                if left[0] < 0 and event != "os.kill":
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        write(text)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

for earlier in (None, "old"):
    number = 0
    while True:
        if path.exists():
            files.delete(path)
        if earlier:
            write(earlier)
        was_killed = killed_at(number, "new")
        found = read()
        assert found in (earlier, "new") or (way == "renamed" and found is None), (number, found)
        files.write_text(folder / "other", "by the next process")
        assert read() in (earlier, "new"), (number, read())
        assert set(os.listdir(folder)) <= {"kept", "other"}, (number, os.listdir(folder))
        if not was_killed:
            break
        number += 1
    assert number > 8
    print(number)
"""

REPLACING = """
import sys
from pathlib import Path
from lora_kit.runtime.files import whole_directory
for _ in range(300):
    with whole_directory(Path(sys.argv[1])) as temporary:
        (temporary / "weights").write_text("w")
        (temporary / "record").write_text("r")
"""


def exchanges(folder: Path) -> bool:
    for name in ("one", "two"):
        (folder / name).mkdir()
    return exchange(folder / "one", folder / "two")


@pytest.mark.parametrize(
    ("kind", "way"), [("file", "replaced"), ("directory", "exchanged"), ("directory", "renamed")]
)
def test_a_kill_at_any_call_leaves_old_or_new_and_the_next_process_cleans_up(
    kind: str, way: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    if way == "exchanged" and not exchanges(tmp_path):
        pytest.skip("the file system cannot exchange two directories")
    done = subprocess.run(
        [sys.executable, "-c", KILLED_EVERYWHERE, kind, way, str(tmp_path / "folder")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_reader_finds_all_files_while_a_directory_is_replaced(tmp_path: Path) -> None:
    if not exchanges(tmp_path):
        pytest.skip("the file system cannot exchange two directories")
    path = tmp_path / "release"
    with whole_directory(path) as temporary:
        for name in ("weights", "record"):
            (temporary / name).write_text("earlier")
    process = subprocess.Popen([sys.executable, "-c", REPLACING, str(path)])
    reads = 0
    while process.poll() is None:
        for name in ("weights", "record"):
            assert (path / name).exists()
            reads += 1
    assert process.returncode == 0
    assert reads > 300
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


def test_without_exchange_a_directory_is_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "exchange", lambda *_: False)
    for text in ("first", "second"):
        with whole_directory(tmp_path / "d") as temporary:
            (temporary / text).touch()
    assert [one.name for one in (tmp_path / "d").iterdir()] == ["second"]
    assert [one.name for one in tmp_path.iterdir()] == ["d"]


def test_an_earlier_directory_returns_if_the_new_one_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "exchange", lambda *_: False)
    with whole_directory(tmp_path / "d") as temporary:
        (temporary / "kept").touch()
    moved = Path.rename

    def lost(source: Path, target: Path) -> Path:
        if target == tmp_path / "d" and source.parent.name != REPLACED:
            raise PermissionError(source)
        return moved(source, target)

    monkeypatch.setattr(Path, "rename", lost)
    with pytest.raises(PermissionError), whole_directory(tmp_path / "d") as temporary:
        (temporary / "new").touch()
    assert [one.name for one in (tmp_path / "d").iterdir()] == ["kept"]
    assert [one.name for one in tmp_path.iterdir()] == ["d"]


def test_a_failed_block_leaves_the_earlier_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "earlier")
    with pytest.raises(UnicodeEncodeError), whole_file(tmp_path / "a") as temporary:
        temporary.write_text("half \ud800", encoding="utf-8")
    assert (tmp_path / "a").read_text() == "earlier"
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_a_file_is_readable_by_all(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
