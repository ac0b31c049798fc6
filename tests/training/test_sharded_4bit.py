"""Refusals of the sharding of 4-bit weights; tests/training/test_fsdp2.py trains with it."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_kit.backbone import load as loading
from lora_kit.backbone.files import resolve
from lora_kit.backbone.mapped_4bit import mapped_layers
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import LoraKitError
from lora_kit.runtime.launch import Launch
from lora_kit.training.sharded_4bit import shard_4bit_layers


@dataclass
class Plugin:
    """Settings of Accelerate's plugin that are read before anything is sharded."""

    activation_checkpointing: bool = False
    auto_wrap_policy: Any = None
    reshard_after_forward: bool = True
    cpu_offload: Any = None
    mixed_precision_policy: Any = None

    def set_auto_wrap_policy(self, _model: torch.nn.Module) -> None:
        """Leave the policy as it is: none."""


@dataclass
class Launched:
    """An accelerator."""

    plugin: Plugin = field(default_factory=Plugin)

    @property
    def state(self) -> SimpleNamespace:
        return SimpleNamespace(fsdp_plugin=self.plugin)


@pytest.fixture
def model(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    launch = Launch(asked=2, fsdp=True, fsdp_version=2, processes=2, kind="FSDP")
    monkeypatch.setattr(loading, "current_launch", lambda: launch)
    spec = BackboneSpec(model=str(tiny), quantization="nf4", dtype="bfloat16")
    loaded: torch.nn.Module = loading.load(resolve(spec), spec).model
    return loaded


def refused(model: torch.nn.Module, accelerator: Any) -> str:
    with pytest.raises(LoraKitError) as caught:
        shard_4bit_layers(model, accelerator)
    return str(caught.value)


def test_packed_weights_that_are_stored_as_floats_are_refused(model: torch.nn.Module) -> None:
    _, layer = next(mapped_layers(model))
    layer.weight.quant_storage = torch.bfloat16
    assert "bitsandbytes issue 1945; got torch.bfloat16" in refused(model, Launched())


def test_layers_that_accelerate_would_wrap_again_are_refused(model: torch.nn.Module) -> None:
    message = refused(model, Launched(Plugin(activation_checkpointing=True)))
    assert "fsdp_config.fsdp_activation_checkpointing" in message


def test_weights_in_none_of_the_sharded_layers_are_refused(model: torch.nn.Module) -> None:
    assert "14 4-bit weights are in none of the layers" in refused(model, Launched())
    for _, layer in list(mapped_layers(model)):
        layer.__class__ = torch.nn.Linear
    model.get_input_embeddings().weight.requires_grad_(True)  # type: ignore[operator]
    assert "1 trained weights are in none of the layers" in refused(model, Launched())


def test_a_torch_that_shards_no_bytes_is_named(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In torch 2.11, `fully_shard` makes parameters that require gradients first."""

    def shard(layer: torch.nn.Module, **_: Any) -> None:
        packed = next(p for p in layer.parameters() if p.dtype is torch.uint8)
        torch.nn.Parameter(packed.data)

    def policy(*_: Any) -> Any:
        return lambda module: type(module).__name__ == "LlamaDecoderLayer"

    monkeypatch.setattr("lora_kit.training.sharded_4bit.fully_shard", shard)
    monkeypatch.setattr("accelerate.utils.fsdp_utils.fsdp2_prepare_auto_wrap_policy", policy)
    launched: Any = Launched()
    launched.device = torch.device("cpu")
    message = refused(model, launched)
    assert message.startswith("backbone.quantization: this version of torch shards no weights")
    assert f"(got {torch.__version__}). Fix: install torch 2.13" in message
