"""Hidden directories of live, dead and distant processes."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lora_kit.runtime.files import whole_file, write_text
from lora_kit.runtime.temporaries import hidden_beside, is_empty, remove_leftovers

WAITING = """
import platform, sys
from pathlib import Path
from lora_kit.runtime.files import whole_file
if len(sys.argv) > 2:
    platform.node = lambda: sys.argv[2]
with whole_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("finished")
    print("ready", flush=True)
    sys.stdin.readline()
"""


def waiting(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_a_live_process_keeps_its_directory_and_a_dead_one_does_not(tmp_path: Path) -> None:
    alive, dead = waiting(str(tmp_path / "alive")), waiting(str(tmp_path / "dead"))
    assert len(hidden(tmp_path)) == 2
    os.kill(dead.pid, signal.SIGKILL)
    dead.wait()
    write_text(tmp_path / "other", "")
    assert [name.startswith(".alive-") for name in hidden(tmp_path)] == [True]
    alive.communicate("go on\n")
    assert (tmp_path / "alive").read_text() == "finished"
    assert hidden(tmp_path) == []


def test_leftovers_of_another_machine_stay(tmp_path: Path) -> None:
    distant = waiting(str(tmp_path / "file"), "another-machine")
    os.kill(distant.pid, signal.SIGKILL)
    distant.wait()
    write_text(tmp_path / "other", "")
    assert len(hidden(tmp_path)) == 1
    assert is_empty(tmp_path) is False
    (tmp_path / "other").unlink()
    assert is_empty(tmp_path)


def test_names_do_not_publish_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "name-of-a-machine")
    with hidden_beside(tmp_path / "file") as directory:
        assert "name-of-a-machine" not in directory.name


def test_blocks_of_one_process_leave_each_other_alone(tmp_path: Path) -> None:
    with whole_file(tmp_path / "outer") as outer, whole_file(tmp_path / "inner") as inner:
        write_text(tmp_path / "third", "")
        outer.write_text("o")
        inner.write_text("i")
        write_text(outer, "o again")
    assert (tmp_path / "outer").read_text() == "o again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inner", "outer", "third"]


def test_other_hidden_files_and_directories_stay(tmp_path: Path) -> None:
    for name in (".git", ".notes-01234567-abcdefgh", ".x.temporary", "a-01234567-abc.temporary"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.glob("*/file"))) == 4


def test_names_of_the_greatest_length_have_temporaries(tmp_path: Path) -> None:
    write_text(tmp_path / ("é" * 127), "text")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["text"]


def test_leftovers_in_a_folder_that_is_not_there_are_none(tmp_path: Path) -> None:
    remove_leftovers(tmp_path / "missing")
