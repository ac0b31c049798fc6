"""Experts of a merged mixture-of-experts model are compared one by one, and named."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lora_kit.data.supervision import Example
from lora_kit.merging.predictions import compute_outputs
from lora_kit.merging.record import recorded_merge_failures
from lora_kit.merging.reference import build_comparison_inputs, compute_reference
from lora_kit.merging.reloaded import compute_outputs_in_subprocess, load_merged
from lora_kit.merging.stream import merge_stream
from lora_kit.merging.tolerances import merge_failures, tolerances_for
from lora_kit.merging.verify import Verification, compare_merged
from tests.merging.in_process import in_a_fork
from tests.merging.test_methods import EXPERTS, plan_of
from tests.merging.test_verify import PLAIN, STOPS

TEXTS = [Example(ids, ids) for ids in (tuple(range(3, 40)), tuple(range(100, 500, 9)))]
# Number of experts of each checkpoint in conftest.py; two layers, two parameters.
COUNTS = {"mixtral": 4, "qwen3-moe": 12}
# Name of one expert's down projection in the files, and of its parameter.
FILES = {
    "mixtral": "model.layers.1.block_sparse_moe.experts.{}.w2.weight",
    "qwen3-moe": "model.layers.1.mlp.experts.{}.down_proj.weight",
}
PARAMETER = "model.layers.1.mlp.experts.down_proj"


def adapted(base: Path, name: str, folder: Path, std: float = 0.02) -> PeftModel:
    """The base in float32 with an adapter of its experts, saved and loaded."""
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj"], target_parameters=EXPERTS[name]
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder)
    return model.eval()


def verified(model: Any, merged: Path, stored: str = "float32") -> Verification:
    questions = build_comparison_inputs(model, TEXTS, STOPS)
    shipped = compute_outputs(load_merged(merged, PLAIN), questions)
    return compare_merged(compute_reference(model, questions), shipped, tolerances_for(stored))


@pytest.fixture(params=COUNTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str, checkpoints: dict[str, Path], tmp_path: Path) -> Any:
    return adapted(checkpoints[name], name, tmp_path / "adapter")


def merged_files(base: Path, folder: Path, stored: str = "float32") -> Path:
    merge_stream(plan_of(base, folder / "adapter", stored_dtype=stored), folder / "merged")
    return folder / "merged"


def edit(merged: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = merged / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_every_expert_of_a_right_merge_is_compared(
    name: str, model: Any, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    found = verified(model, merged_files(checkpoints[name], tmp_path))
    assert found.passed, found.reasons
    experts = found.experts
    assert experts is not None
    assert experts.compared == experts.changed == 4 * COUNTS[name]
    assert experts.below_rounding == 0
    assert experts.wrong == ()
    assert experts.least_kept == pytest.approx(1, abs=1e-3)
    assert experts.most_kept == pytest.approx(1, abs=1e-3)
    assert experts.largest_error < 1e-5
    assert f"{4 * COUNTS[name]} experts compared" in experts.describe()


def test_two_experts_in_each_others_place_are_named(
    name: str, model: Any, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    merged = merged_files(checkpoints[name], tmp_path)
    first, second = (FILES[name].format(number) for number in (1, 3))

    def swap(tensors: dict[str, torch.Tensor]) -> None:
        tensors[first], tensors[second] = tensors[second].clone(), tensors[first].clone()

    edit(merged, swap)
    found = verified(model, merged)
    assert found.experts is not None
    assert found.experts.wrong == (f"{PARAMETER}[1]", f"{PARAMETER}[3]")
    reasons = " ".join(found.reasons)
    assert f"experts: 2 of {4 * COUNTS[name]} are not those of base and adapter" in reasons
    assert f"{PARAMETER}[1], {PARAMETER}[3]" in reasons


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_one_expert_that_was_not_merged_is_named(
    stored: str, name: str, model: Any, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    merged = merged_files(checkpoints[name], tmp_path, stored)
    assert verified(model, merged, stored).experts.wrong == ()
    key = FILES[name].format(2)
    original = load_file(checkpoints[name] / "model.safetensors")[key]
    edit(merged, lambda tensors: tensors.update({key: original.to(tensors[key].dtype)}))
    found = verified(model, merged, stored)
    assert found.experts is not None
    assert found.experts.wrong == (f"{PARAMETER}[2]",)
    assert found.experts.least_kept_expert == f"{PARAMETER}[2]"
    assert found.experts.least_kept == pytest.approx(0, abs=0.01)
    assert any(f"{PARAMETER}[2]" in reason for reason in found.reasons)


def test_a_small_change_of_one_expert_is_not_lost_among_the_others(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """The distributions agree: an adapter of few steps, and one expert of 48."""
    base = checkpoints["qwen3-moe"]
    model = adapted(base, "qwen3-moe", tmp_path / "adapter", std=1e-4)
    merged = merged_files(base, tmp_path)
    key = FILES["qwen3-moe"].format(11)
    original = load_file(base / "model.safetensors")[key].float()
    edit(merged, lambda tensors: tensors.update({key: original}))
    found = verified(model, merged)
    assert found.mean_kl < 1e-6
    assert found.top1_agreement == 1
    assert found.experts is not None
    assert found.experts.wrong == (f"{PARAMETER}[11]",)
    assert not found.passed


def test_experts_that_the_adapter_leaves_alone_are_compared_too(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    base = checkpoints["qwen3-moe"]
    model = adapted(base, "qwen3-moe", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    # (rows, rank * experts), of the 12 experts the last index runs fastest.
    for key, weight in weights.items():
        if "experts" in key and "lora_B" in key:
            weight.view(weight.shape[0], -1, 12)[:, :, 5] = 0
    save_file(weights, path, metadata={"format": "pt"})
    model = PeftModel.from_pretrained(model.unload(), tmp_path / "adapter").eval()
    merged = merged_files(base, tmp_path)
    found = verified(model, merged)
    assert found.passed, found.reasons
    assert (found.experts.compared, found.experts.changed) == (48, 44)
    key = FILES["qwen3-moe"].format(5)
    edit(merged, lambda tensors: tensors.update({key: tensors[key].flip(0)}))
    assert verified(model, merged).experts.wrong == (f"{PARAMETER}[5]",)


def test_the_new_process_compares_experts_as_this_one(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    base = checkpoints["mixtral"]
    model = adapted(base, "mixtral", tmp_path / "adapter")
    merged = merged_files(base, tmp_path)
    questions = build_comparison_inputs(model, TEXTS, STOPS)
    here = compute_outputs(load_merged(merged, PLAIN), questions).expert_outputs
    with in_a_fork():
        there = compute_outputs_in_subprocess(merged, questions, PLAIN, tmp_path).expert_outputs
    assert set(here) == set(there) == set(questions.expert_inputs)
    assert len(here) == 4
    for key, outputs in here.items():
        assert torch.allclose(outputs, there[key], atol=1e-6)


def test_recorded_values_of_experts_are_held_to_the_tolerances(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    base = checkpoints["mixtral"]
    model = adapted(base, "mixtral", tmp_path / "adapter")
    found = verified(model, merged_files(base, tmp_path))
    verification = json.loads(json.dumps(found.to_dict()))
    record = {"into": "original", "dtype": "float32", "verification": verification}
    assert recorded_merge_failures(record, "none") == []
    for changes in (
        {"wrong": ["model.layers.0.mlp.experts.down_proj[0]"]},
        {"largest_error": 0.1},
        {"largest_error": float("nan")},
        {"least_kept": 0.0},
        {"least_kept": None},
        {"median_kept": 0.5},
    ):
        verification["experts"] = asdict(replace(found.experts, **changes))
        assert recorded_merge_failures(record, "none"), changes
    # Earlier versions recorded no experts.
    del verification["experts"]
    assert recorded_merge_failures(record, "none") == []


def test_many_wrong_experts_are_counted_and_some_named(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    base = checkpoints["mixtral"]
    model = adapted(base, "mixtral", tmp_path / "adapter")
    found = verified(model, merged_files(base, tmp_path))
    wrong = tuple(f"a[{number}]" for number in range(12))
    values = asdict(replace(found, experts=replace(found.experts, wrong=wrong)))
    (reason,) = merge_failures(values, tolerances_for("float32"))
    assert "a[7] and 4 more" in reason
    assert "a[8]" not in reason
