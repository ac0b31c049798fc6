"""Options of transformers and TRL: each does something, or is refused with a remedy."""

import copy
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments
from trl import SFTConfig

from lora_kit import pipeline
from lora_kit.backbone.blocks import find_blocks
from lora_kit.backbone.load import Backbone
from lora_kit.pipeline import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.training import Optimizer, TrainingSpec
from lora_kit.runtime.errors import RecipeError, TrainingError
from lora_kit.runtime.launch import Launch
from lora_kit.training.acceleration import (
    acceleration_arguments,
    compile_blocks,
    require_acceleration,
)
from lora_kit.training.optimizer_state import full_optimizer_state, restore_optimizer_state
from tests.training.cut import cut_off, losses, sha256, with_training

CPU, GPU = torch.device("cpu"), torch.device("cuda")
OPTIMIZERS = [name for name in get_args(Optimizer) if not name.startswith("paged_")]


def optimizer_of(name: str, model: torch.nn.Module, folder: Path) -> Any:
    from transformers import Trainer

    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, learning_rate=1e-3, optim=name
    )
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    return kind(model.parameters(), **options)


def step(model: torch.nn.Module, optimizer: Any, number: int) -> None:
    torch.manual_seed(number)
    model(torch.randn(4, 96)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_each_optimizer_is_restored_from_files(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    # One weight is large enough for 8 bits, one is not.
    model = torch.nn.Sequential(torch.nn.Linear(96, 64), torch.nn.Linear(64, 2))
    first = copy.deepcopy(model.state_dict())
    optimizer = optimizer_of(name, model, tmp_path)
    for number in range(2):
        step(model, optimizer, number)
    tensors, rest = full_optimizer_state(optimizer)
    save_file(tensors, tmp_path / "optimizer.safetensors")
    saved = json.loads(json.dumps(rest))

    resumed = copy.deepcopy(model)
    other = optimizer_of(name, resumed, tmp_path)
    restore_optimizer_state(other, saved, load_file(tmp_path / "optimizer.safetensors"))
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for one, optim in ((model, optimizer), (resumed, other)):
        step(one, optim, 2)
    for key, weight in model.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[key])
        assert not torch.equal(weight, first[key])


def test_each_option_reaches_the_trainer(tmp_path: Path) -> None:
    plain = acceleration_arguments(TrainingSpec())
    defaults = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert plain == {"optim": defaults.optim, "neftune_noise_alpha": None}
    spec = TrainingSpec(
        optim="lion_8bit", neftune_noise_alpha=5, liger=True, activation_offloading=True
    )
    arguments = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, **acceleration_arguments(spec)
    )
    assert arguments.optim == "lion_8bit"
    assert arguments.neftune_noise_alpha == 5
    assert arguments.use_liger_kernel
    # Liger's losses would replace the model's forward, and with it the logits at positions.
    assert not any(arguments.liger_kernel_config.values())
    assert arguments.activation_offloading


@pytest.mark.parametrize(
    ("changes", "launch", "device", "part"),
    [
        ({"optim": "paged_adamw_8bit"}, Launch(), CPU, "set training.optim: adamw_8bit"),
        ({"activation_offloading": True}, Launch(), CPU, "from a GPU to main memory"),
        ({"liger": True}, Launch(), CPU, "on GPUs only"),
        ({"liger": True}, Launch(), GPU, r"pip install 'lora-kit\[liger\]'"),
        ({"optim": "sgd"}, Launch(deepspeed=True), GPU, "state of AdamW only"),
        ({"compile": True}, Launch(fsdp=True), GPU, "blocks are not compiled under FSDP"),
    ],
)
def test_an_option_that_cannot_work_is_refused_with_a_remedy(
    changes: dict[str, Any], launch: Launch, device: torch.device, part: str
) -> None:
    with pytest.raises(TrainingError, match=rf"^training\..*{part}"):
        require_acceleration(TrainingSpec.model_validate(changes), launch, device)


def test_a_compiler_is_needed() -> None:
    from torch._inductor import config

    part = r"^training\.compile: needs a C\+\+ compiler"
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(TrainingError, match=part):
        require_acceleration(TrainingSpec(compile=True), Launch(), CPU)


def test_quantized_blocks_are_not_compiled_on_a_cpu() -> None:
    spec = TrainingSpec(compile=True)
    require_acceleration(spec, Launch(), None, quantized=True)
    with pytest.raises(TrainingError, match="too long to compile on a CPU"):
        require_acceleration(spec, Launch(), CPU, quantized=True)


def test_another_machine_is_planned_without_its_devices() -> None:
    spec = TrainingSpec(optim="paged_adamw_8bit", liger=True, activation_offloading=True)
    require_acceleration(spec, Launch(), None)


@pytest.mark.parametrize("packing", [True, "unpadded"])
def test_noise_and_packing_are_refused_together(tiny_recipe: Recipe, packing: Any) -> None:
    document = tiny_recipe.model_dump(mode="json")
    document["training"]["neftune_noise_alpha"] = 5.0
    Recipe.model_validate(document)
    document["data"]["packing"] = packing
    with pytest.raises((RecipeError, ValueError), match=r"training\.neftune_noise_alpha: scales"):
        Recipe.model_validate(document)


@pytest.mark.slow  # trainings
def test_noise_changes_the_loss_of_training_alone(tiny_recipe: Recipe, tmp_path: Path) -> None:
    results = [
        train(with_training(tiny_recipe, neftune_noise_alpha=alpha), tmp_path / str(alpha)).result
        for alpha in (None, 0.001, 50.0)
    ]
    plain, little, much = (result.first_loss for result in results)
    assert little == pytest.approx(plain, rel=1e-4)
    assert abs(much - plain) > 1e-3 * plain
    assert results[0].validation_before == results[2].validation_before


@pytest.mark.slow  # trainings
@pytest.mark.parametrize("optim", ["adamw_8bit", "adafactor"])
def test_a_resumed_training_is_the_same(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optim: str
) -> None:
    recipe = with_training(recipe, optim=optim)
    pipeline.train(recipe, tmp_path / "whole")
    cut_off(monkeypatch, recipe, tmp_path / "cut", 3)
    pipeline.train(recipe, tmp_path / "cut", resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert sha256(tmp_path / "cut") == sha256(tmp_path / "whole")


def test_blocks_are_compiled_in_place(tiny_backbone: Backbone) -> None:
    model = tiny_backbone.model
    names = list(model.state_dict())
    compile_blocks(model)
    blocks = find_blocks(model)[1]
    assert len(blocks) > 1
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert list(model.state_dict()) == names


@pytest.mark.slow  # compiles
@pytest.mark.parametrize(("packing", "checkpointing"), [(None, False), (True, True)])
def test_compiled_blocks_train_the_same_up_to_rounding(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    packing: bool | None,
    checkpointing: bool,
) -> None:
    """With and without the adapter, in lengths of all kinds, and from a checkpoint."""
    data = recipe.data.model_copy(update={"packing": packing})
    adapter = recipe.adapter.model_copy(update={"dropout": 0.0})
    recipe = recipe.model_copy(update={"data": data, "adapter": adapter})
    recipe = with_training(recipe, gradient_checkpointing=checkpointing)
    compiled = with_training(recipe, compile=True)
    pipeline.train(recipe, tmp_path / "eager")
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    cut_off(monkeypatch, compiled, tmp_path / "run", 3)
    assert counters["stats"]["unique_graphs"] > 0
    pipeline.train(compiled, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "eager"), rel=1e-4)
    names = [
        sorted(load_file(tmp_path / run / "adapter" / "adapter_model.safetensors"))
        for run in ("eager", "run")
    ]
    assert names[0] == names[1]


class Counting(torch.autograd.graph.saved_tensors_hooks):
    """Stand-in for TRL's offloading, which needs a GPU: counts what leaves and comes back."""

    def __init__(self) -> None:
        self.left = self.back = 0
        super().__init__(self._leave, self._come_back)

    def _leave(self, tensor: torch.Tensor) -> torch.Tensor:
        self.left += 1
        return tensor

    def _come_back(self, tensor: torch.Tensor) -> torch.Tensor:
        self.back += 1
        return tensor


@pytest.mark.slow  # trainings
def test_activations_leave_in_the_forward_pass_and_come_back(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting()
    monkeypatch.setattr(
        "trl.trainer.sft_trainer.get_act_offloading_ctx_manager", lambda **_: counting
    )
    monkeypatch.setattr("lora_kit.preflight.launch_checks.require_acceleration", lambda *_: None)
    train(tiny_recipe, tmp_path / "plain")
    assert counting.left == 0
    train(with_training(tiny_recipe, activation_offloading=True), tmp_path / "run")
    assert counting.left >= counting.back > 100
    assert sha256(tmp_path / "run") == sha256(tmp_path / "plain")
