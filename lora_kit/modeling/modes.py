"""Context managers that set a model's mode and restore it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from peft import PeftModel

# A parameter and the backbone's value of it.
BackboneValue = tuple[torch.nn.Parameter, torch.Tensor]
_BACKBONE_VALUES = "lora_kit_backbone_values"


@contextmanager
def in_mode(model: torch.nn.Module, training: bool) -> Iterator[None]:
    """Set a model to training or evaluation mode, and restore the mode of each module on exit."""
    # Modes differ within a model: a new PEFT model wraps a backbone in eval mode in training mode.
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def eval_mode(model: torch.nn.Module) -> AbstractContextManager[None]:
    """Set a model to evaluation mode, and restore the mode of each module on exit."""
    return in_mode(model, training=False)


@contextmanager
def adapter_disabled(model: PeftModel) -> Iterator[PeftModel]:
    """Yield the model with the adapter disabled, and enable the adapter on exit.

    PEFT leaves biases and embeddings that it loaded into the backbone as they are; they get the
    backbone's values here.
    """
    changed: Sequence[BackboneValue] = getattr(model, _BACKBONE_VALUES, ())
    adapted = [parameter.data for parameter, _ in changed]
    try:
        for parameter, value in changed:
            parameter.data = value
        with _layers_disabled(model):
            yield model
    finally:
        for (parameter, _), value in zip(changed, adapted, strict=True):
            parameter.data = value


@contextmanager
def _layers_disabled(model: PeftModel) -> Iterator[None]:
    """Disable the adapter's layers.

    PEFT's own `disable_adapter` asks every layer for its status first: 17 ms for 30 blocks, twice
    for each batch of an evaluation.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    configuration = model.active_peft_config
    layer = next((one for one in model.modules() if isinstance(one, BaseTunerLayer)), None)
    if configuration.is_prompt_learning or configuration.is_adaption_prompt or layer is None:
        with model.disable_adapter():
            yield
        return
    if layer.disable_adapters:
        yield
        return
    model.base_model.disable_adapter_layers()
    try:
        yield
    finally:
        model.base_model.enable_adapter_layers()


def keep_backbone_values(model: PeftModel, values: Sequence[BackboneValue]) -> None:
    """Keep the backbone's values of parameters that an adapter has changed in place.

    Args:
        model: backbone with the adapter attached.
        values: parameters, each with its value before the adapter was loaded; those that still
            have it are left out.
    """
    changed = [one for one in values if not torch.equal(one[0].data, one[1])]
    setattr(model, _BACKBONE_VALUES, tuple(changed))
