"""Elastic weight consolidation: weights that the base's texts depend on are held in their place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from lora_kit.backbone.load import Backbone
from lora_kit.data.tokenization import Example
from lora_kit.modeling.likelihood import pad_examples, supervised_nll, to_device
from lora_kit.modeling.modes import adapter_disabled, eval_mode
from lora_kit.recipe.retention import EwcSpec
from lora_kit.runtime.console import meter
from lora_kit.runtime.processes import process_state
from lora_kit.training.before_clipping import BeforeClipping

if TYPE_CHECKING:
    from peft import PeftModel

Fisher = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LowRank:
    """LoRA's update of one layer, `scaling * second @ first`, and the layer that it changes.

    Attributes:
        first: (rank, in).
        second: (out, rank).
    """

    base: torch.nn.Module
    first: torch.nn.Parameter
    second: torch.nn.Parameter
    scaling: float


def low_rank_updates(model: PeftModel) -> dict[str, LowRank]:
    """LoRA's update of each linear layer, by the layer's name."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and not isinstance(layer, ParamWrapper)
        if "default" in layer.lora_A
    }
    return {
        name: LowRank(
            layer.get_base_layer(),
            layer.lora_A["default"].weight,
            layer.lora_B["default"].weight,
            layer.scaling["default"],
        )
        for name, layer in layers.items()
    }


class EwcPenalty(BeforeClipping):
    """The penalty weight / 2 * sum(F * D^2) on the update D of each layer.

    Kirkpatrick et al. 2017, arXiv:1612.00796. F is the diagonal of the base's empirical Fisher
    information of the full weight, not of LoRA's factors: half of sum(F * D^2) is the divergence
    from the base in nats per token, to second order and as far as the diagonal goes. It is kept in
    bfloat16: as much memory as the adapted weights take in it.
    """

    def __init__(
        self,
        model: PeftModel,
        backbone: Backbone,
        examples: Sequence[Example],
        spec: EwcSpec,
    ):
        """Plan.

        Args:
            model: with its adapter, not wrapped for several processes.
            backbone: of the model.
            examples: the base's texts, every token labelled.
            spec: what a nat is worth.
        """
        self._model = model
        self._backbone = backbone
        self._examples = tuple(examples)
        self._weight = spec.weight
        self._updates = low_rank_updates(model)
        self._fisher: Fisher = {}

    def on_train_begin(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Measure what the base's texts depend on, the adapter switched off."""
        bases = {name: update.base for name, update in self._updates.items()}
        self._fisher = fisher(self._model, self._backbone, self._examples, bases)

    def change(self, state: TrainerState, scale: float) -> None:
        """Add the penalty's gradient: after the others' were added up, it is the same for all."""
        del state
        weight = self._weight * scale
        with torch.no_grad():
            for name, update in self._updates.items():
                first, second, scaling = update.first, update.second, update.scaling
                slope = weight * scaling**2 * self._fisher[name].float() * (second @ first)
                for factor, gradient in ((second, slope @ first.T), (first, second.T @ slope)):
                    factor.grad = gradient if factor.grad is None else factor.grad + gradient


def fisher(
    model: PeftModel,
    backbone: Backbone,
    examples: Sequence[Example],
    layers: dict[str, torch.nn.Module],
) -> Fisher:
    """Diagonal of the empirical Fisher information of some layers' weights, per token.

    The square of a text's gradient, over its tokens, averaged over texts. The weights are frozen,
    and may be quantized: their gradient is made of what goes into a layer and what comes back.

    Args:
        model: with its adapter, which is switched off.
        backbone: of the model.
        examples: texts, every token labelled.
        layers: linear ones, by name.

    Returns:
        (out, in) bfloat16 by name.
    """
    total: Fisher = {}
    is_shown = process_state().is_main_process
    with (
        meter("what the base depends on", len(examples), visible=is_shown) as progress,
        eval_mode(model),
        adapter_disabled(model),
        _with_gradients(model),
    ):
        for example in examples:
            padded = pad_examples([example], backbone.tokenizer.pad_token_id)
            batch = to_device(padded, backbone.model.device)
            with _gradients_of(layers) as gradients:
                nll, _ = supervised_nll(model, batch)
                nll.sum().backward()  # type: ignore[no-untyped-call]
            for name, gradient in gradients.items():
                part = gradient.float().square() / (len(nll) * len(examples))
                total[name] = total[name] + part if name in total else part
            progress.advance()
    return {name: tensor.bfloat16() for name, tensor in total.items()}


@contextmanager
def _with_gradients(model: PeftModel) -> Iterator[None]:
    """While open, activations have gradients though nothing is trained."""

    def require(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        output.requires_grad_()

    words = model.get_input_embeddings().weight
    # An encoder with a decoder has several modules of one matrix.
    handles = [
        module.register_forward_hook(require)
        for module in model.modules()
        if getattr(module, "weight", None) is words and module is not model.get_output_embeddings()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _gradients_of(layers: dict[str, torch.nn.Module]) -> Iterator[Fisher]:
    """The gradients of frozen weights, (out, in), of what is differentiated while it is open."""
    found: Fisher = {}

    def watch(name: str) -> Any:
        def forward(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            entering = inputs[0].detach().flatten(0, -2)

            def backward(gradient: torch.Tensor) -> None:
                found[name] = gradient.flatten(0, -2).to(entering.dtype).T @ entering

            output.register_hook(backward)  # type: ignore[no-untyped-call]

        return forward

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
