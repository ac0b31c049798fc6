"""Reference outputs: base + adapter, which a merged model has to reproduce."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lora_kit.data.supervision import Example
from lora_kit.merging.experts import adapted_expert_output, adapted_experts
from lora_kit.merging.meta_model import bare_name
from lora_kit.merging.predictions import (
    ComparisonInputs,
    ModelOutputs,
    compute_outputs,
    module_output,
    module_trial_inputs,
    predict_log_probabilities,
)
from lora_kit.modeling.held_weights import held_weights
from lora_kit.modeling.modes import adapter_disabled


@dataclass(frozen=True)
class ReferenceOutputs:
    """Outputs of base + adapter and, as the control, of the base alone.

    Attributes:
        adapted: outputs with the adapter enabled.
        control: log-probabilities of the base alone, (positions, vocabulary) float32.
        base_module_outputs: output of each adapted module with the adapter disabled,
            (trials or ids, features) float32.
        base_expert_outputs: `expert_outputs` with the adapter disabled.
    """

    adapted: ModelOutputs
    control: torch.Tensor
    base_module_outputs: Mapping[str, torch.Tensor]
    base_expert_outputs: Mapping[str, torch.Tensor] = field(default_factory=dict)


def build_comparison_inputs(
    model: Any, examples: Sequence[Example], stop_token_ids: tuple[int, ...]
) -> ComparisonInputs:
    """Build the inputs on which base + adapter and the merged model are compared.

    Args:
        model: backbone with the adapter attached.
        examples: held-out examples, compared at their labelled positions.
        stop_token_ids: tokens that end generation.
    """
    inputs = {name: _trial_inputs(name, module) for name, module in adapted_modules(model)}
    expert_inputs = {
        name: module_trial_inputs(name, module.get_param().shape[-1])
        for name, module in adapted_experts(model)
    }
    return ComparisonInputs(tuple(examples), inputs, stop_token_ids, expert_inputs)


@torch.inference_mode()
def compute_reference(model: Any, inputs: ComparisonInputs) -> ReferenceOutputs:
    """Run base + adapter, and the base alone, on the comparison inputs.

    Args:
        model: backbone with the adapter attached; set to evaluation mode.
        inputs: inputs of `build_comparison_inputs`.

    Raises:
        MergeError: if no example has a label.
    """
    model.eval()
    modules = dict(adapted_modules(model))

    def module_outputs() -> dict[str, torch.Tensor]:
        return {
            name: module_output(module, inputs.module_inputs[name], model)
            for name, module in modules.items()
        }

    def expert_outputs() -> dict[str, torch.Tensor]:
        return {
            name: adapted_expert_output(module, inputs.expert_inputs[name])
            for name, module in adapted_experts(model)
        }

    # Modules of the attached model have other names, so that they are run separately.
    questions = ComparisonInputs(inputs.examples, {}, inputs.stop_token_ids)
    with held_weights(model):
        texts = compute_outputs(model, questions)
        with adapter_disabled(model):
            control = predict_log_probabilities(model, inputs.examples)
    adapted = ModelOutputs(
        texts.log_probabilities, texts.generated_ids, module_outputs(), expert_outputs()
    )
    with adapter_disabled(model):
        return ReferenceOutputs(adapted, control, module_outputs(), expert_outputs())


def adapted_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and module of each module that an adapter changes and that takes inputs.

    Names are those of the model without an adapter. Fused experts are one parameter without inputs
    of its own; see `experts.py`.
    """
    from peft.tuners.lora import ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    seen: set[str] = set()
    for full, module in model.named_modules():
        name = bare_name(full)
        adapts = isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        if adapts and not isinstance(module, ParamWrapper) and name not in seen:
            base = _base_of(module)
            if isinstance(base, torch.nn.Embedding) or hasattr(base, "in_features"):
                seen.add(name)
                yield name, module


def _base_of(module: Any) -> Any:
    original = getattr(module, "original_module", None)
    return module.get_base_layer() if original is None else original


def _trial_inputs(name: str, module: Any) -> torch.Tensor:
    base = _base_of(module)
    if not isinstance(base, torch.nn.Embedding):
        return module_trial_inputs(name, base.in_features)
    layer = getattr(module, "token_adapter", module)
    trained = getattr(layer, "token_indices", {})
    tokens = [token for indices in trained.values() for token in indices]
    return module_trial_inputs(name, base.num_embeddings, tokens or [0])
