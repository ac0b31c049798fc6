import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_kit.releasing.formats import FormatFindings, check_formats
from lora_kit.runtime.files import write_json


@pytest.fixture
def model(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the merged model to damage, with its adapter next to it."""
    shutil.copytree(finished / "adapter", tmp_path / "adapter")
    return Path(shutil.copytree(finished / "merged", tmp_path / "merged"))


def found(model: Path) -> FormatFindings:
    return check_formats(model, model.parent / "adapter")


def edit(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text()) | changes
    write_json(path, {key: one for key, one in value.items() if one is not None})


def test_a_merge_of_this_package_has_no_problems(model: Path) -> None:
    assert found(model) == FormatFindings((), ())


def rename(weights: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    weights[f"_orig_mod.{name}"] = weights.pop(name)


def drop(weights: dict[str, torch.Tensor]) -> None:
    del weights["model.norm.weight"]


def reshape(weights: dict[str, torch.Tensor]) -> None:
    weights["model.norm.weight"] = torch.ones(3)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (
            rename,
            [
                "weights are missing (got model.layers.0.mlp.up_proj.weight",
                "does not have the stored weights (got _orig_mod.",
            ],
        ),
        (drop, ["weights are missing (got model.norm.weight"]),
        (reshape, ["weights have another shape (got model.norm.weight"]),
    ],
)
def test_weights_that_differ_from_the_model_are_refused(
    model: Path, damage: Callable[[dict[str, torch.Tensor]], None], parts: list[str]
) -> None:
    weights = load_file(model / "model.safetensors")
    damage(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    refusals = "\n".join(found(model).refusals)
    assert all(part in refusals for part in parts), refusals


def test_a_tied_head_may_be_stored_or_not(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    assert "lm_head.weight" not in weights
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert found(model).refusals == ()
    edit(model / "config.json", tie_word_embeddings=False)
    del weights["lm_head.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert found(model).refusals == (
        "merged: weights are missing (got lm_head.weight). Fix: run `lora-kit merge` again",
    )


def test_a_model_stored_as_single_experts_is_accepted(model: Path, tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    size = json.loads((model / "config.json").read_text())["vocab_size"]
    config = MixtralConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
        eos_token_id=2,
    )
    MixtralForCausalLM(config).save_pretrained(model)
    assert any("experts.1.w1" in name for name in load_file(model / "model.safetensors"))
    assert found(model).refusals == ()


def test_several_files_need_a_correct_index(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[:5], names[5:]), start=1):
        file = model / f"model-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, file, metadata={"format": "pt"})
    assert "need model.safetensors.index.json" in found(model).refusals[0]
    files = [f"model-0000{1 + (n >= 5)}-of-00002.safetensors" for n in range(len(names))]
    weight_map = dict(zip(names, files, strict=True))
    write_json(model / "model.safetensors.index.json", {"weight_map": weight_map})
    assert found(model).refusals == ()
    weight_map[names[0]] = files[-1]
    write_json(model / "model.safetensors.index.json", {"weight_map": weight_map})
    assert "weight_map differs from the tensors in the files" in found(model).refusals[0]


@pytest.mark.parametrize(
    ("name", "changes", "part"),
    [
        ("config.json", {"architectures": None}, "architectures is missing"),
        (
            "config.json",
            {"architectures": ["GPT2LMHeadModel"]},
            "class that transformers builds, LlamaFor",
        ),
        ("config.json", {"model_type": "no-such-type"}, "transformers cannot read it"),
        (
            "generation_config.json",
            {"eos_token_id": None},
            "not a token id or a list of token ids (got None)",
        ),
        (
            "generation_config.json",
            {"eos_token_id": "<|im_end|>"},
            "is not a token id or a list of token ids",
        ),
        (
            "generation_config.json",
            {"eos_token_id": [2, True]},
            "is not a token id or a list of token ids",
        ),
        (
            "generation_config.json",
            {"eos_token_id": [0]},
            "lacks the end-of-turn token (got [0]). Fix: add 2 (<|im_end|>)",
        ),
    ],
)
def test_configurations_that_load_another_model_or_never_stop_are_refused(
    model: Path, name: str, changes: dict[str, Any], part: str
) -> None:
    edit(model / name, **changes)
    refusals = "\n".join(found(model).refusals)
    assert part in refusals, refusals


def test_files_that_may_contain_code_are_refused(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"")
    (model / "modeling_mine.py").write_text("")
    refusals = found(model).refusals
    assert refusals == (
        "pytorch_model.bin: may contain code. Fix: remove the file",
        "modeling_mine.py: may contain code. Fix: remove the file",
    )


def test_a_truncated_file_is_refused(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert found(model).refusals


def test_weights_larger_than_memory_are_checked(model: Path) -> None:
    numbers = 2**40
    header = {"huge": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}
    text = json.dumps(header).encode()
    path = model / "model-00002.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, path.stat().st_size + 4 * numbers)  # sparse
    stored = dict.fromkeys(load_file(model / "model.safetensors"), "model.safetensors")
    write_json(model / "model.safetensors.index.json", {"weight_map": stored | {"huge": path.name}})
    assert found(model).refusals == (
        "merged: the model does not have the stored weights (got huge). Fix: run `lora-kit merge` "
        "again",
    )


def test_a_model_without_chat_template_is_a_warning(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    findings = found(model)
    assert findings.refusals == ()
    assert "no chat template" in findings.warnings[0]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"modules_to_save": ["lm_head"]}, "refuses an adapter with modules_to_save"),
        ({"bias": "all"}, "refuses an adapter with bias"),
        ({"use_dora": True}, "refuses an adapter with use_dora"),
        ({"alpha_pattern": {"q_proj": 4}}, "ignores alpha_pattern"),
        ({"r": 17}, "needs --max-lora-rank 32"),
        ({"r": 1024}, "up to rank 512"),
        ({"peft_type": "IA3"}, "loads only LoRA adapters (got IA3)"),
    ],
)
def test_adapter_features_that_vllm_does_not_support_are_warnings(
    model: Path, changes: dict[str, Any], part: str
) -> None:
    edit(model.parent / "adapter" / "adapter_config.json", **changes)
    findings = found(model)
    assert findings.refusals == ()
    assert any(part in warning for warning in findings.warnings), findings.warnings


def test_adapter_tensors_without_a_module_are_a_warning(model: Path) -> None:
    path = model.parent / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    weights[name.replace("layers.0", "layers.9")] = weights.pop(name)
    save_file(weights, path, metadata={"format": "pt"})
    assert "has no module for 1 tensors" in found(model).warnings[0]
