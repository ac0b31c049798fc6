"""The memory of the libraries is measured in a process of its own."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_kit.preflight import libraries
from lora_kit.preflight.libraries import libraries_memory


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, as of a process that has just begun."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    libraries_memory.cache_clear()
    yield tmp_path / "lora_kit" / "libraries"
    libraries_memory.cache_clear()


def answering(monkeypatch: pytest.MonkeyPatch, status: int, out: str, err: str) -> list[list[str]]:
    """Let processes answer so; return the list of the commands that were run."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, status, out, err)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_what_libraries_print_as_they_are_imported_is_not_shown(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[subprocess.CompletedProcess[str]] = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done.append(run(*a, **k)) or done[-1])
    assert 2**27 < libraries_memory() < 2**33
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    # The process imports lora_kit first, and bitsandbytes then keeps quiet about kernels.
    [process] = done
    assert process.returncode == 0
    assert "kernels" not in process.stderr


def test_the_reason_is_told_if_they_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, 1, "", "ImportError: no bitsandbytes")
    with pytest.raises(RuntimeError, match="ImportError: no bitsandbytes"):
        libraries_memory()


@pytest.mark.parametrize(
    "damaged", ["", "[]", '{"bytes": "many"}', '{"bytes": 0}', '{"bytes": true}']
)
def test_a_later_process_need_not_measure_again(
    monkeypatch: pytest.MonkeyPatch, cache: Path, damaged: str
) -> None:
    commands = answering(monkeypatch, 0, "said by a library\n300000000\n", "")
    sizes = []
    for count in (1, 1, 2):
        libraries_memory.cache_clear()
        sizes.append(libraries_memory())
        assert len(commands) == count
        (entry,) = cache.iterdir()
        if len(sizes) == 2:
            entry.write_text(damaged)
    assert sizes == [300_000_000] * 3
    monkeypatch.setattr(libraries, "versions", lambda: {"torch": "3"})
    libraries_memory.cache_clear()
    libraries_memory()
    assert len(commands) == 3
