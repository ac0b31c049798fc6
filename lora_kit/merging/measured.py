"""What base + adapter answer, which is what the merged model has to answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_kit.data.tokenization import Example
from lora_kit.merging.answers import Answers, Questions, answer, inputs_for, output_of, predict
from lora_kit.merging.hollow import bare_name
from lora_kit.modeling.modes import adapter_disabled


@dataclass(frozen=True)
class Measured:
    """What base + adapter answer, and the base alone.

    Attributes:
        adapted: with the adapter.
        control: (positions, vocabulary) float32, without it.
        base_outputs: of each adapted module without the adapter.
    """

    adapted: Answers
    control: torch.Tensor
    base_outputs: Mapping[str, torch.Tensor]


def questions_for(
    model: Any, examples: Sequence[Example], stop_token_ids: tuple[int, ...]
) -> Questions:
    """What base + adapter and the merged model are asked.

    Args:
        model: the backbone with the adapter attached.
        examples: held-out; compared where they have labels.
        stop_token_ids: generation ends on any of them.
    """
    inputs = {name: _inputs(name, module) for name, module in adapted_modules(model)}
    return Questions(tuple(examples), inputs, stop_token_ids)


@torch.inference_mode()
def measure(model: Any, questions: Questions) -> Measured:
    """Ask base + adapter, and the base alone.

    Raises:
        MergeError: if there is no position to predict at.
    """
    model.eval()
    modules = dict(adapted_modules(model))
    plain = answer(model, Questions(questions.examples, {}, questions.stop_token_ids))
    outputs = {
        name: output_of(module, questions.modules[name], model) for name, module in modules.items()
    }
    with adapter_disabled(model):
        control = predict(model, questions.examples)
        without = {
            name: output_of(module, questions.modules[name], model)
            for name, module in modules.items()
        }
    return Measured(Answers(plain.log_probabilities, plain.texts, outputs), control, without)


def adapted_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """The modules that an adapter changes and that take inputs of their own, by their bare names.

    Experts that are one parameter have no input of their own; the distributions alone tell of them.
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


def _inputs(name: str, module: Any) -> torch.Tensor:
    base = _base_of(module)
    if not isinstance(base, torch.nn.Embedding):
        return inputs_for(name, base.in_features)
    layer = getattr(module, "token_adapter", module)
    trained = getattr(layer, "token_indices", {})
    tokens = [token for indices in trained.values() for token in indices]
    return inputs_for(name, base.num_embeddings, tokens or [0])
