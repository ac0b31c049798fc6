import os
from pathlib import Path

import pytest

from lora_kit.runtime.errors import EvaluationError, MergeError
from lora_kit.runtime.llama_cpp import find_llama_cpp


def test_a_program_is_found_in_its_folder_or_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "built" / "bin" / "llama-server"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EvaluationError, match=r"llama-server: not found .*--llama-cpp"):
        find_llama_cpp(None, "llama-server", EvaluationError)
    with pytest.raises(MergeError, match=r"--llama-cpp: no program llama-quantize in this folder"):
        find_llama_cpp(tmp_path / "built", "llama-quantize", MergeError)
    for folder in (tmp_path / "built", program.parent):
        assert find_llama_cpp(folder, "llama-server", EvaluationError) == program
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{program.parent}")
    assert find_llama_cpp(None, "llama-server", EvaluationError) == program
