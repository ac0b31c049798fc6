"""A wrong merge is caught: its outputs differ from those of base + adapter."""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_kit.backbone.load import Backbone
from lora_kit.data.supervision import Example
from lora_kit.merging import reloaded
from lora_kit.merging.predictions import TEXT_TOKENS, ComparisonInputs, compute_outputs
from lora_kit.merging.reference import ReferenceOutputs, build_comparison_inputs, compute_reference
from lora_kit.merging.reloaded import ComputeSettings, compute_outputs_in_subprocess, load_merged
from lora_kit.merging.stream import merge_stream
from lora_kit.merging.tolerances import tolerances_for
from lora_kit.merging.verify import (
    Verification,
    compare_merged,
    modified_tensors,
    verify_merged,
)
from lora_kit.runtime.errors import MergeError
from tests.merging.in_process import in_this_process
from tests.merging.test_stream import plan_of, quantized, trained

TEXTS = [
    Example(ids, (-100, -100, *ids[2:]))
    for ids in (tuple(range(100, 160)), tuple(range(1000, 1400, 9)))
]
STOPS = (2,)
PLAIN = ComputeSettings(torch.float32, "cpu", "sdpa")


@pytest.fixture
def backbone(tiny: Path) -> Backbone:
    return quantized(tiny, "nf4")


@pytest.fixture
def model(backbone: Backbone, tmp_path: Path) -> Any:
    return trained(backbone, tmp_path / "adapter")


def verified(model: Any, merged: Path) -> Verification:
    """Verify as `verify_merged` does, in this process."""
    questions = build_comparison_inputs(model, TEXTS, STOPS)
    shipped = compute_outputs(load_merged(merged, PLAIN), questions)
    return compare_merged(compute_reference(model, questions), shipped)


def test_what_was_merged_right_passes_in_a_new_process(
    backbone: Backbone, model: Any, tmp_path: Path
) -> None:
    merge_stream(plan_of(backbone, tmp_path / "adapter"), tmp_path / "merged")
    questions = build_comparison_inputs(model, TEXTS, STOPS)
    measured = compute_reference(model, questions)
    found = verify_merged(tmp_path / "merged", measured, questions, PLAIN)
    assert found.passed, found.reasons
    assert found.modules == 14
    assert found.same_texts == found.texts > 0
    assert found.least_kept == pytest.approx(1, abs=1e-3)
    assert found.most_kept == pytest.approx(1, abs=1e-3)
    assert found.mean_kl < 1e-6 < found.control_mean_kl


def test_texts_generated_in_one_batch_equal_those_of_each_prompt_alone(model: Any) -> None:
    prompts = [tuple(range(start, start + 3 + 5 * number)) for number, start in enumerate((9, 700))]
    examples = tuple(Example(ids, (*[-100] * (len(ids) - 1), ids[-1])) for ids in prompts)
    alone = []
    for ids in prompts:
        prompt = torch.tensor([ids[:-1]])
        generated = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=TEXT_TOKENS,
            do_sample=False,
            eos_token_id=[],
            pad_token_id=2,
        )
        alone.append(generated[0, prompt.shape[1] :])
    assert alone[0].tolist() != alone[1].tolist()
    # One of them ends in its midst, the other one goes on.
    end = next(int(token) for token in alone[0][5:] if token not in alone[1])
    place = alone[0].tolist().index(end)
    found = compute_outputs(model, ComparisonInputs(examples, {}, (end,))).generated_ids
    assert found[0].tolist() == [*alone[0][: place + 1].tolist(), *[-1] * (TEXT_TOKENS - place - 1)]
    assert found[1].tolist() == alone[1].tolist()
    assert (found[2:] == -1).all()


def test_files_that_do_not_fit_beside_the_backbone_are_run_on_the_cpu(
    backbone: Backbone, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_stream(plan_of(backbone, tmp_path / "adapter"), tmp_path / "merged")
    devices = []

    def full(merged: Path, computing: ComputeSettings) -> Any:
        devices.append(computing.device)
        if computing.device != "cpu":
            raise torch.OutOfMemoryError
        return load_merged(merged, computing)

    monkeypatch.setattr(reloaded, "load_merged", full)
    questions = build_comparison_inputs(model, TEXTS, STOPS)
    on_gpu = replace(PLAIN, device="cuda:0")
    found = reloaded.compute_outputs_with_cpu_fallback(tmp_path / "merged", questions, on_gpu)
    assert devices == ["cuda:0", "cpu"]
    assert compare_merged(compute_reference(model, questions), found).passed


def change_alpha(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_alpha": 1.5 * config["lora_alpha"]}))


def empty_module(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if "layers.1.mlp.up_proj.lora_B" in key)
    save_file(tensors | {key: torch.zeros_like(tensors[key])}, path)


def exchange_modules(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    gate, up = (next(k for k in tensors if f"0.mlp.{m}_proj.lora_B" in k) for m in ("gate", "up"))
    save_file(tensors | {gate: tensors[up], up: tensors[gate]}, path)


def negate(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({k: -t if "lora_B" in k else t for k, t in tensors.items()}, path)


@pytest.mark.parametrize("spoil", [change_alpha, empty_module, exchange_modules, negate])
def test_files_merged_from_another_adapter_are_caught(
    backbone: Backbone, model: Any, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(tmp_path / "adapter")
    merge_stream(plan_of(backbone, tmp_path / "adapter"), tmp_path / "merged")
    found = verified(model, tmp_path / "merged")
    assert not found.passed
    assert any(
        reason.startswith("least_kept: model.layers.") and "of the adapter's effect" in reason
        for reason in found.reasons
    )


@pytest.mark.parametrize("quantization", ["nf4", pytest.param("none", marks=pytest.mark.slow)])
@in_this_process()
def test_a_small_change_is_told_from_none_where_models_compute_in_half_precision(
    tiny: Path, tmp_path: Path, quantization: str
) -> None:
    """Rounding of the outputs exceeds the change, so that modules are run in float32.

    Rounding the stored weights to bfloat16 loses the change; storing them in float32 does not.
    """
    # As checkpoints are stored that are computed in bfloat16.
    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    weights = load_file(tiny / "model.safetensors")
    halves = {key: tensor.to(torch.bfloat16) for key, tensor in weights.items()}
    save_file(halves, base / "model.safetensors", metadata={"format": "pt"})
    backbone = quantized(base, quantization, "bfloat16")
    model = trained(backbone, tmp_path / "adapter", std=1e-4)
    questions = build_comparison_inputs(model, TEXTS, STOPS)
    measured = compute_reference(model, questions)
    assert next(backbone.model.parameters()).dtype is torch.bfloat16

    def found(adapter: Path | None, stored: str) -> Verification:
        plan = plan_of(backbone, tmp_path / "adapter", stored_dtype=stored)
        directory = tmp_path / f"{adapter is None}-{stored}"
        merge_stream(replace(plan, adapter=adapter), directory)
        return verify_merged(directory, measured, questions, ComputeSettings.of(backbone.model))

    exact = found(tmp_path / "adapter", "float32")
    assert exact.passed, exact.reasons
    assert exact.least_kept == pytest.approx(1, abs=0.01)
    rounded = found(tmp_path / "adapter", "bfloat16")
    assert rounded.median_kept < 0.9
    assert "the stored dtype is too coarse (fix: merge.dtype: float32)" in " ".join(rounded.reasons)
    assert found(None, "bfloat16").most_kept < 0.1


def test_a_merge_that_did_nothing_is_caught(backbone: Backbone, model: Any, tmp_path: Path) -> None:
    nothing = replace(plan_of(backbone, tmp_path / "adapter"), adapter=None)
    merge_stream(nothing, tmp_path / "merged")
    found = verified(model, tmp_path / "merged")
    assert not found.passed
    assert found.most_kept < 0.01
    assert found.mean_kl == pytest.approx(found.control_mean_kl, rel=1e-3)


def test_another_base_of_the_same_shape_is_caught(
    backbone: Backbone, model: Any, tiny: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    weights = load_file(tiny / "model.safetensors")
    save_file(
        {k: t + 0.02 * torch.randn_like(t) for k, t in weights.items()},
        other / "model.safetensors",
        metadata={"format": "pt"},
    )
    merge_stream(plan_of(backbone, tmp_path / "adapter", base=other), tmp_path / "merged")
    assert not verified(model, tmp_path / "merged").passed


def test_weights_that_were_damaged_afterwards_are_caught(
    backbone: Backbone, model: Any, tmp_path: Path
) -> None:
    merge_stream(plan_of(backbone, tmp_path / "adapter"), tmp_path / "merged")
    path = tmp_path / "merged" / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.self_attn.k_proj.weight"
    save_file(tensors | {name: tensors[name].flip(0)}, path, metadata={"format": "pt"})
    found = verified(model, tmp_path / "merged")
    assert not found.passed
    assert found.least_kept_module == name.removesuffix(".weight")
    path.write_bytes(path.read_bytes()[:-100])
    questions = build_comparison_inputs(model, TEXTS, STOPS)
    with pytest.raises(MergeError, match="cannot be run in a new process"):
        compute_outputs_in_subprocess(tmp_path / "merged", questions, PLAIN, tmp_path)


def test_the_new_process_is_none_of_a_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")
    seen: dict[str, str] = {}

    def run(command: list[str], **named: Any) -> subprocess.CompletedProcess[str]:
        seen.update(named["env"])
        return subprocess.CompletedProcess(command, 1, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(MergeError, match="the process was killed"):
        compute_outputs_in_subprocess(tmp_path, ComparisonInputs((), {}, STOPS), PLAIN, tmp_path)
    assert "PATH" in seen
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} & seen.keys()


def test_a_parameter_that_is_in_no_file_is_caught(
    backbone: Backbone, model: Any, tmp_path: Path
) -> None:
    merge_stream(plan_of(backbone, tmp_path / "adapter"), tmp_path / "merged")
    path = tmp_path / "merged" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(MergeError, match=r"missing from the files \(got 1, .*1\.mlp\.down_proj"):
        load_merged(tmp_path / "merged", PLAIN)


def test_adapted_embeddings_are_run_on_the_trained_tokens(tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    plain = quantized(tiny, "none")
    config = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[4000])
    model = get_peft_model(plain.model, config)
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name or "lora_B" in name:
            parameter.data += torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    merge_stream(plan_of(plain, tmp_path / "adapter"), tmp_path / "merged")
    found = verified(model, tmp_path / "merged")
    assert found.passed, found.reasons
    path = tmp_path / "merged" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][4000] = 0
    save_file(tensors, path, metadata={"format": "pt"})
    found = verified(model, tmp_path / "merged")
    assert not found.passed
    assert found.least_kept_module == "model.embed_tokens"


def test_agreement_and_distance_are_held_to_their_tolerances() -> None:
    from lora_kit.merging.predictions import ModelOutputs

    def answered(logits: torch.Tensor) -> ModelOutputs:
        return ModelOutputs(logits.log_softmax(dim=-1), torch.zeros(1, 1), {})

    torch.manual_seed(0)
    truth = 3 * torch.randn(400, 50)
    control = (truth + 3 * torch.randn_like(truth)).log_softmax(dim=-1)
    measured = ReferenceOutputs(answered(truth), control, {})
    near = compare_merged(measured, answered(truth + 0.01 * torch.randn_like(truth)))
    far = compare_merged(measured, answered(truth + torch.randn_like(truth)))
    assert near.passed
    assert len(far.reasons) == 2
    with pytest.raises(MergeError, match="infinite or NaN"):
        compare_merged(measured, answered(truth * float("nan")))


def test_tensors_that_the_adapter_leaves_alone_are_compared_one_by_one(
    backbone: Backbone, model: Any, tmp_path: Path
) -> None:
    """A row of an embedding that no compared text uses shows in no output."""
    plan = plan_of(backbone, tmp_path / "adapter")
    result = merge_stream(plan, tmp_path / "merged")
    assert "model.embed_tokens.weight" in result.untouched
    assert modified_tensors(plan.base, tmp_path / "merged", result.untouched) == []
    path = tmp_path / "merged" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][4_050] = 0
    save_file(tensors, path, metadata={"format": "pt"})
    assert verified(model, tmp_path / "merged").passed
    found = modified_tensors(plan.base, tmp_path / "merged", result.untouched)
    assert found == ["model.embed_tokens.weight"]


@pytest.mark.parametrize("quantization", ["fp4", "int8"])
def test_merges_into_other_quantizations_pass(
    tiny: Path, tmp_path: Path, quantization: str
) -> None:
    other = quantized(tiny, quantization)
    model = trained(other, tmp_path / "adapter")
    merge_stream(plan_of(other, tmp_path / "adapter"), tmp_path / "merged")
    questions = build_comparison_inputs(model, TEXTS, STOPS)
    shipped = compute_outputs(load_merged(tmp_path / "merged", PLAIN), questions)
    found = compare_merged(
        compute_reference(model, questions),
        shipped,
        tolerances_for("float32", quantization=quantization),
    )
    assert found.passed, found.reasons


def test_layers_that_store_their_weight_transposed_are_dequantized_as_they_were_trained(
    tiny: Path, tmp_path: Path
) -> None:
    """bitsandbytes quantizes GPT-2's layers, stored (in, out), along the other side."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=49152, n_positions=512, n_embd=64, n_layer=2, n_head=4)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    for file in tiny.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "gpt2" / file.name)
    other = quantized(tmp_path / "gpt2", "nf4")
    model = trained(other, tmp_path / "adapter", target_modules=["c_attn", "c_proj"])
    merge_stream(plan_of(other, tmp_path / "adapter"), tmp_path / "merged")
    found = verified(model, tmp_path / "merged")
    assert found.passed, found.reasons
    assert found.mean_kl < 1e-6


def test_no_share_is_made_up_where_no_module_could_be_run() -> None:
    from lora_kit.merging.predictions import ModelOutputs

    logits = torch.randn(20, 50).log_softmax(dim=-1)
    answers = ModelOutputs(logits, torch.zeros(1, 1), {})
    found = compare_merged(ReferenceOutputs(answers, logits, {}), answers)
    assert (found.modules, found.least_kept, found.median_kept) == (0, None, None)
