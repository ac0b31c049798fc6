"""Gradient checkpointing by either of its names."""

from typing import Any

import pytest
import torch

from lora_kit.backbone.load import Backbone
from lora_kit.modeling.checkpointing import (
    disable_checkpointing,
    enable_checkpointing,
    is_checkpointing,
)


def test_a_model_recomputes_its_activations_until_it_is_told_not_to(
    tiny_backbone: Backbone,
) -> None:
    assert not is_checkpointing(tiny_backbone.model)
    enable_checkpointing(tiny_backbone.model, use_reentrant=False)
    assert is_checkpointing(tiny_backbone.model)
    disable_checkpointing(tiny_backbone.model)
    assert not is_checkpointing(tiny_backbone.model)


@pytest.mark.parametrize("name", ["gradient", "activation"])
def test_older_and_newer_names_are_used(name: str) -> None:
    """The older one is transformers 5.17's."""
    said: list[Any] = []

    class Model(torch.nn.Module):
        pass

    setattr(Model, f"{name}_checkpointing_enable", lambda _self, options: said.append(options))
    setattr(Model, f"{name}_checkpointing_disable", lambda _self: said.append("off"))
    enable_checkpointing(Model(), use_reentrant=False)
    disable_checkpointing(Model())
    assert said == [{"use_reentrant": False}, "off"]
