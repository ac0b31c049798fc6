"""Scripts in new processes: without lora_kit, or with their own import of it."""

from pathlib import Path

import pytest

from tests.plain_process import run_new, run_plain

LIBRARIES = "import sys; assert 'peft.peft_model' in sys.modules"


def test_a_plain_script_has_libraries_arguments_and_surroundings_and_no_lora_kit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SURROUNDINGS", "these")
    told = "import os; print(sys.argv[1:], os.environ['SURROUNDINGS'], os.getcwd())"
    printed = run_plain(f"{LIBRARIES}\n{told}", "a", tmp_path)
    assert printed == f"{['a', str(tmp_path)]} these {tmp_path}\n"
    with pytest.raises(AssertionError, match="import of lora_kit halted"):
        run_plain("import lora_kit")


def test_a_new_process_imports_lora_kit_itself() -> None:
    assert run_new("import lora_kit; print(lora_kit.__name__)") == "lora_kit\n"
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_new("1 / 0")
