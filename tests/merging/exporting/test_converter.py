"""Models that our own writer does not know go through llama.cpp's converter."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_kit.merging.exporting.export import export
from lora_kit.merging.exporting.show import describe_export
from lora_kit.merging.exporting.weights import WeightComparison
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.llama_cpp import find_converter
from tests.merging.exporting.small_model import TEXTS, changed
from tests.standins.programs import write_program

NAME = "convert_hf_to_gguf.py"
REAL = Path(sys.prefix) / "llama.cpp" / "source" / "llama.cpp"
# Writes what it was given beside itself, then the file that lies there, or part of it.
SCRIPT = """
import json, os, shutil, sys
from pathlib import Path
here = Path(__file__).parent
output = Path(sys.argv[sys.argv.index("--outfile") + 1])
(here / "given.json").write_text(json.dumps([os.environ.get("HF_HUB_OFFLINE"), *sys.argv[1:]]))
content = (here / "whole.gguf").read_bytes()
{write}
"""
WHOLE = "output.write_bytes(content)"
HALF = "output.write_bytes(content[: len(content) // 2])"
FAILS = "output.write_bytes(content[:9]); print('loading'); sys.exit('Model X is not supported')"
NOTHING = "print('done')"


def stand_in(model: Path, write: str = WHOLE) -> Path:
    """A checkout whose converter writes the file that our own writer makes of the model."""
    folder = model.parent / "llama.cpp"
    folder.mkdir()
    own = model.parent / "own" / "whole.gguf"
    own.parent.mkdir()
    export(model, "gguf", own, "f32", TEXTS)
    shutil.move(own, folder / "whole.gguf")
    (folder / NAME).write_text(SCRIPT.format(write=write))
    return folder


def unknown(model: Path) -> None:
    """Make a model that is computed as before, but that our own writer refuses."""
    changed(model, sliding_window=1_000_000)


def test_a_model_that_is_not_written_here_is_written_by_the_converter(
    model: Path, tmp_path: Path
) -> None:
    folder = stand_in(model)
    unknown(model)
    result = export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS, folder)
    offline, directory, *given = json.loads((folder / "given.json").read_text())
    assert (offline, directory) == ("1", str(model))
    assert given[-4:] == ["--outtype", "f32", "--model-name", "model"]
    assert result.passed
    assert result.comparison.top1_agreement == 1
    assert result.comparison.same_tokens == result.comparison.texts > 0
    assert f"written by {folder / NAME}" in describe_export(result)
    assert json.loads((tmp_path / "model.gguf.json").read_text())["converter"] == NAME
    assert (tmp_path / "model.Modelfile").is_file()


def test_a_model_that_is_written_here_needs_no_converter(model: Path, tmp_path: Path) -> None:
    folder = stand_in(model, FAILS)
    result = export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS, folder)
    assert result.converter is None
    assert not (folder / "given.json").exists()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (FAILS, r"ended with status 1 \(got loading; Model X is not supported\)\. Fix: install"),
        (HALF, "not a whole GGUF file"),
        ("output.write_bytes(content[:4])", "not a whole GGUF file"),
        ("output.write_bytes(b'no GGUF file at all, but some text')", "not a whole GGUF file"),
        (NOTHING, r"wrote no file \(got done\)"),
    ],
)
def test_a_converter_that_fails_leaves_nothing(
    write: str, message: str, model: Path, tmp_path: Path
) -> None:
    folder = stand_in(model, write)
    unknown(model)
    output = tmp_path / "out" / "model.gguf"
    output.parent.mkdir()
    with pytest.raises(MergeError, match=message):
        export(model, "gguf", output, "f32", TEXTS, folder)
    assert not list(output.parent.iterdir())


def test_a_file_of_other_weights_does_not_pass(model: Path, tmp_path: Path) -> None:
    folder = stand_in(model)
    for path in model.glob("*.safetensors"):
        halves = {name: tensor / 2 for name, tensor in load_file(path).items()}
        save_file(halves, path, metadata={"format": "pt"})
    unknown(model)
    result = export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS, folder)
    assert not result.passed


def as_architecture(model: Path, name: str, tmp_path: Path, **new: Any) -> Path:
    """A stand-in whose file has the same tensors, but another architecture and metadata."""
    from gguf import GGUFReader, GGUFWriter
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    folder = stand_in(model)
    reader = GGUFReader(folder / "whole.gguf")
    details = {}
    for field in reader.fields.values():
        if field.name.startswith("llama."):
            own = field.name.replace("llama.", f"{name}.")
            details[own] = MetadataDetails(field.types[0], field.contents())
        elif field.name in new:
            details[field.name] = MetadataDetails(field.types[0], new[field.name])
    removed = [*details, *(field for field in reader.fields if field.startswith("llama."))]
    copy_with_new_metadata(reader, GGUFWriter(tmp_path / "other", name), details, removed)
    shutil.move(tmp_path / "other", folder / "whole.gguf")
    return folder


def test_the_weights_are_compared_where_transformers_cannot_read_the_file(
    model: Path, tmp_path: Path
) -> None:
    folder = as_architecture(model, "olmo", tmp_path)
    unknown(model)
    result = export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS, folder)
    found = result.comparison
    assert isinstance(found, WeightComparison)
    # Query and key rows are in llama.cpp's order; OLMo has no weights in its norms.
    assert (found.reordered, found.different) == (4, ())
    assert found.same == 11
    assert len([name for name in found.not_compared if "norm" in name]) == 10
    assert found.same_tokens == found.texts > 0
    assert result.passed
    shown = describe_export(result)
    assert "4 have them in another order, which is not checked" in shown
    assert "distributions were not compared, the weights were: " in shown


def test_a_tensor_of_other_values_is_named(model: Path, tmp_path: Path) -> None:
    folder = as_architecture(model, "olmo", tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    (path,) = (file for file in model.glob("*.safetensors") if name in load_file(file))
    weights = load_file(path)
    save_file(weights | {name: 1.1 * weights[name]}, path, metadata={"format": "pt"})
    unknown(model)
    result = export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS, folder)
    assert result.comparison.different == (name,)
    assert not result.passed
    assert f"1 have other values ({name})" in describe_export(result)


def test_nothing_compared_is_no_pass(model: Path, tmp_path: Path) -> None:
    folder = as_architecture(model, "unheard-of", tmp_path)
    unknown(model)
    result = export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS, folder)
    assert result.comparison.same == 0
    assert not result.passed


def test_tokens_that_cannot_be_compared_are_said(model: Path, tmp_path: Path) -> None:
    folder = as_architecture(model, "olmo", tmp_path, **{"tokenizer.ggml.pre": "made-up"})
    unknown(model)
    result = export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS, folder)
    assert result.comparison.texts == 0
    assert "tokens were not compared" in result.warnings[0]
    assert "made-up" in result.warnings[0]


def test_a_k_quant_is_made_of_what_the_converter_writes(model: Path, tmp_path: Path) -> None:
    folder = stand_in(model)
    write_program(folder / "build" / "llama-quantize", 'cp "$1" "$2"')
    shutil.move(folder / "build", folder / "bin")
    unknown(model)
    result = export(model, "gguf", tmp_path / "model.gguf", "q4_k_m", TEXTS, folder)
    assert json.loads((folder / "given.json").read_text())[-3] == "f32"
    assert (result.type, result.passed) == ("q4_k_m", True)


def test_without_a_converter_the_message_says_where_it_is_sought(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    unknown(model)
    with pytest.raises(MergeError, match=r"sliding_window.*--llama-cpp.*on the PATH"):
        export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS)
    with pytest.raises(MergeError, match=rf"no {NAME} in {tmp_path}"):
        export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS, tmp_path)


@pytest.mark.parametrize("place", ["", "bin", "build/bin"])
def test_the_converter_is_found_in_a_checkout_or_beside_its_programs(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / NAME
    script.write_text("")
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    assert find_converter(folder) == script
    monkeypatch.chdir(folder)
    assert find_converter(Path()) == script


def test_the_converter_is_found_where_make_unpacks_it_and_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = tmp_path / "source" / "llama.cpp" / NAME
    unpacked.parent.mkdir(parents=True)
    unpacked.write_text("")
    assert find_converter(tmp_path) == find_converter(tmp_path / "bin") == unpacked
    program = write_program(tmp_path / "path" / "convert-hf-to-gguf", "true")
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    assert find_converter(None) == program


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / NAME).is_file(), reason="make has not unpacked llama.cpp")
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_the_real_converter_writes_an_architecture_that_is_unknown_here(
    kind: Any, smollm: Path, tmp_path: Path
) -> None:
    """With the real tokenizer: the converter knows pre-tokenizers by their tokens of a text."""
    from transformers import Olmo2Config, Olmo2ForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    torch.manual_seed(0)
    config = Olmo2Config(vocab_size=49152, **sizes, **heads, **ends)
    directory = tmp_path / "model"
    Olmo2ForCausalLM(config).save_pretrained(directory)
    for pattern in ("tokenizer*", "*.jinja"):
        for file in smollm.glob(pattern):
            shutil.copy(file, directory / file.name)
    result = export(directory, "gguf", tmp_path / "model.gguf", kind, TEXTS, REAL)
    assert result.passed
    assert (result.comparison.same, result.comparison.not_compared) == (25, ())
    assert result.comparison.same_tokens == result.comparison.texts > 0
