"""Elastic weight consolidation: penalize updates of weights that matter for the base's texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from lora_kit.adapter.peft_methods import DEFAULT_ADAPTER
from lora_kit.backbone.load import Backbone
from lora_kit.data.supervision import Example
from lora_kit.modeling.likelihood import supervised_nll
from lora_kit.modeling.model_inputs import pad_examples, to_device
from lora_kit.modeling.modes import adapter_disabled, eval_mode
from lora_kit.recipe.retention import EwcSpec
from lora_kit.runtime.console import meter, say
from lora_kit.runtime.processes import process_state
from lora_kit.training.gradient_hooks import GradientHook

if TYPE_CHECKING:
    from peft import PeftModel

Fisher = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LowRankUpdate:
    """LoRA update of one linear layer: `scaling * lora_b @ lora_a`, added to the base's weight.

    Attributes:
        base: the adapted linear layer.
        lora_a: (rank, in).
        lora_b: (out, rank).
    """

    base: torch.nn.Module
    lora_a: torch.nn.Parameter
    lora_b: torch.nn.Parameter
    scaling: float


def lora_updates(model: PeftModel) -> dict[str, LowRankUpdate]:
    """Return the LoRA update of each adapted linear layer, by the layer's name."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and not isinstance(layer, ParamWrapper)
        if DEFAULT_ADAPTER in layer.lora_A
    }
    return {
        name: LowRankUpdate(
            layer.get_base_layer(),
            layer.lora_A[DEFAULT_ADAPTER].weight,
            layer.lora_B[DEFAULT_ADAPTER].weight,
            layer.scaling[DEFAULT_ADAPTER],
        )
        for name, layer in layers.items()
    }


class EwcPenalty(GradientHook):
    """EWC penalty, weight / 2 * sum(F * D^2), on the update D of each layer.

    Kirkpatrick et al. 2017, arXiv:1612.00796. F is the diagonal of the base's empirical Fisher
    information of the full weight, not of LoRA's factors. Half of sum(F * D^2) approximates the
    divergence from the base in nats per token, to second order and ignoring off-diagonal terms. F
    is stored in bfloat16 and takes as much memory as the adapted weights do in bfloat16.
    """

    def __init__(
        self,
        model: PeftModel,
        backbone: Backbone,
        examples: Sequence[Example],
        spec: EwcSpec,
    ):
        """Find the LoRA updates; the Fisher information is estimated when training begins.

        Args:
            model: the model with its adapter, not wrapped for several processes.
            backbone: the frozen model.
            examples: texts that the base should retain, every token labelled.
            spec: weight of the penalty.
        """
        self._model = model
        self._backbone = backbone
        self._examples = tuple(examples)
        self._weight = spec.weight
        self._updates = lora_updates(model)
        self._fisher: Fisher = {}

    def on_train_begin(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Estimate the Fisher information of the base, with the adapter disabled."""
        bases = {name: update.base for name, update in self._updates.items()}
        self._fisher = empirical_fisher(self._model, self._backbone, self._examples, bases)
        if unused := bases.keys() - self._fisher.keys():
            # Such as experts: without information, nothing holds them.
            say(
                f"retention.ewc: {len(unused)} of {len(bases)} layers are not used by the texts "
                f"({min(unused)}), so that they are not penalised"
            )

    def modify_gradients(self, state: TrainerState, scale: float) -> None:
        """Add the penalty's gradient after the reduction: all processes compute the same one."""
        del state
        weight = self._weight * scale
        with torch.no_grad():
            for name, fisher in self._fisher.items():
                update = self._updates[name]
                lora_a, lora_b, scaling = update.lora_a, update.lora_b, update.scaling
                slope = weight * scaling**2 * fisher.float() * (lora_b @ lora_a)
                for factor, gradient in ((lora_b, slope @ lora_a.T), (lora_a, lora_b.T @ slope)):
                    factor.grad = gradient if factor.grad is None else factor.grad + gradient


def empirical_fisher(
    model: PeftModel,
    backbone: Backbone,
    examples: Sequence[Example],
    layers: dict[str, torch.nn.Module],
) -> Fisher:
    """Compute the diagonal of the empirical Fisher information of layers' weights, per token.

    The information is the squared gradient of a text's loss, divided by the text's tokens, averaged
    over texts; the gradient is summed over the uses of a layer before it is squared. The weights
    are frozen and may be quantized, so their gradient is computed from each layer's input and the
    gradient of its output.

    Args:
        model: the model with its adapter, which is disabled here.
        backbone: the frozen model.
        examples: texts, every token labelled.
        layers: linear layers by name.

    Returns:
        Fisher information by layer name, (out, in) bfloat16.
    """
    total: Fisher = {}
    is_shown = process_state().is_main_process
    with (
        meter("estimating Fisher information", len(examples), visible=is_shown) as progress,
        eval_mode(model),
        adapter_disabled(model),
        _activation_gradients(model),
    ):
        for example in examples:
            padded = pad_examples([example], backbone.tokenizer.pad_token_id)
            batch = to_device(padded, backbone.model.device)
            with _weight_gradients(layers) as gradients:
                nll, _ = supervised_nll(model, batch)
                nll.sum().backward()  # type: ignore[no-untyped-call]
            for name, gradient in gradients.items():
                term = gradient.float().square() / (len(nll) * len(examples))
                total[name] = total[name] + term if name in total else term
            progress.advance()
    return {name: tensor.bfloat16() for name, tensor in total.items()}


@contextmanager
def _activation_gradients(model: PeftModel) -> Iterator[None]:
    """Give activations gradients although no parameter is trained."""

    def require(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        output.requires_grad_()

    embeddings = model.get_input_embeddings().weight
    # Several modules of an encoder-decoder share the embedding matrix.
    handles = [
        module.register_forward_hook(require)
        for module in model.modules()
        if getattr(module, "weight", None) is embeddings
        and module is not model.get_output_embeddings()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _weight_gradients(layers: dict[str, torch.nn.Module]) -> Iterator[Fisher]:
    """Yield a dictionary that a backward pass fills with gradients of frozen weights, (out, in).

    A layer that a forward pass uses several times, as recursive models do, has one update for all
    uses, so its gradient is their sum. Layers that share a tensor, but have updates of their own,
    have a gradient each: that of the tensor as this layer uses it.
    """
    gradients: Fisher = {}

    def watch(name: str) -> Any:
        def forward(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            layer_input = inputs[0].detach().flatten(0, -2)

            def backward(gradient: torch.Tensor) -> None:
                term = gradient.flatten(0, -2).to(layer_input.dtype).T @ layer_input
                gradients[name] = gradients[name].float() + term if name in gradients else term

            output.register_hook(backward)  # type: ignore[no-untyped-call]

        return forward

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield gradients
    finally:
        for handle in handles:
            handle.remove()
