"""The memory of the libraries is measured in a process of its own."""

import subprocess
from typing import Any

import pytest

from lora_kit.preflight.libraries import libraries_memory


@pytest.fixture(autouse=True)
def uncached() -> None:
    libraries_memory.cache_clear()


def test_what_libraries_print_as_they_are_imported_is_not_shown(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert 2**27 < libraries_memory() < 2**33
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_the_reason_is_told_if_they_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ImportError: no bitsandbytes")

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(RuntimeError, match="ImportError: no bitsandbytes"):
        libraries_memory()
