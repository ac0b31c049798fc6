"""K-quants, on a stand-in for llama.cpp's program."""

from pathlib import Path

import pytest

from lora_kit.merging.exporting.export import export
from lora_kit.runtime.errors import MergeError
from tests.merging.exporting.small_model import TEXTS
from tests.standins.programs import write_program


def test_a_k_quant_is_written_by_the_program_of_llama_cpp(model: Path, tmp_path: Path) -> None:
    """The stand-in copies: what it is given, and what is read back, is the model in float32."""
    script = f'echo "$3" > {tmp_path}/kind; cp "$1" "$2"'
    folder = write_program(tmp_path / "llama-quantize", script).parent
    output = tmp_path / "out" / "model.gguf"
    output.parent.mkdir()
    result = export(model, "gguf", output, "q4_k_m", TEXTS, folder)
    assert (tmp_path / "kind").read_text() == "Q4_K_M\n"
    assert (result.type, result.passed, result.comparison.top1_agreement) == ("q4_k_m", True, 1.0)
    assert sorted(file.name for file in output.parent.iterdir()) == [
        "model.Modelfile",
        "model.gguf",
        "model.gguf.json",
    ]


def test_a_program_that_fails_leaves_nothing(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "model.gguf"
    output.parent.mkdir()
    script = 'echo "unknown type $3"; exit 1'
    folder = write_program(tmp_path / "llama-quantize", script).parent
    with pytest.raises(MergeError, match=r"status 1 \(got unknown type Q6_K\)"):
        export(model, "gguf", output, "q6_k", TEXTS, folder)
    with pytest.raises(MergeError, match="no program llama-quantize in this folder"):
        export(model, "gguf", output, "q6_k", TEXTS, tmp_path / "out")
    assert not list(output.parent.iterdir())
