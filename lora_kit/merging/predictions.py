"""Outputs of a model on fixed inputs, with the adapter attached or merged."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lora_kit.backbone.devices import input_device
from lora_kit.backbone.heads import is_masked_model
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.modeling.generation import generate_batch
from lora_kit.modeling.likelihood import logits_at
from lora_kit.modeling.masked import masked_logits
from lora_kit.modeling.model_inputs import pad_examples, to_device
from lora_kit.runtime.errors import MergeError

MAX_POSITIONS = 512
TEXTS, TEXT_TOKENS = 4, 32
# Number of random inputs that each adapted module is run on.
TRIALS = 4


@dataclass(frozen=True)
class ComparisonInputs:
    """Inputs on which two models are compared.

    Attributes:
        examples: examples whose labelled positions are predicted.
        module_inputs: inputs of each module that the adapter changes, by module name:
            (trials, features) float32, or (ids,) int64 for an embedding.
        stop_token_ids: tokens that end generation.
        expert_inputs: inputs of each parameter with experts that the adapter changes, by parameter
            name: (trials, columns) float32.
    """

    examples: tuple[Example, ...]
    module_inputs: Mapping[str, torch.Tensor]
    stop_token_ids: tuple[int, ...]
    expert_inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the inputs to a safetensors file."""
        tensors = {f"module/{name}": inputs for name, inputs in self.module_inputs.items()}
        tensors |= {f"expert/{name}": inputs for name, inputs in self.expert_inputs.items()}
        for number, example in enumerate(self.examples):
            tensors[f"input_ids/{number}"] = torch.tensor(example.input_ids)
            tensors[f"labels/{number}"] = torch.tensor(example.labels)
        tensors["stop_token_ids"] = torch.tensor(self.stop_token_ids)
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path) -> ComparisonInputs:
        """Read a file that `save` wrote."""
        tensors = load_file(path)
        numbers = range(sum(key.startswith("labels/") for key in tensors))
        examples = tuple(
            Example(
                tuple(tensors[f"input_ids/{n}"].tolist()), tuple(tensors[f"labels/{n}"].tolist())
            )
            for n in numbers
        )
        stops = tuple(tensors["stop_token_ids"].tolist())
        inputs = (tensors_under("module/", tensors), tensors_under("expert/", tensors))
        return cls(examples, inputs[0], stops, inputs[1])


def tensors_under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors whose keys have a prefix, by the rest of their keys."""
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs of a model on `ComparisonInputs`.

    Attributes:
        log_probabilities: next-token log-probabilities, (positions, vocabulary) float32.
        generated_ids: greedy continuations, (texts, tokens) int64; -1 after the end of a text.
        module_outputs: output of each module on its inputs, (trials or ids, features) float32.
        expert_outputs: products of each parameter's experts with its inputs,
            (experts, trials, rows) float32.
    """

    log_probabilities: torch.Tensor
    generated_ids: torch.Tensor
    module_outputs: Mapping[str, torch.Tensor]
    expert_outputs: Mapping[str, torch.Tensor] = field(default_factory=dict)


def module_trial_inputs(name: str, features: int, tokens: Sequence[int] = ()) -> torch.Tensor:
    """Draw the inputs that a module is run on.

    Args:
        name: name of the module; seeds the draw.
        features: number of input features, or of rows for an embedding.
        tokens: ids that are always included; the module is an embedding if any are given.

    Returns:
        Normal numbers, (trials, features) float32; token ids, (ids,) int64, for an embedding.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if not tokens:
        return torch.randn(TRIALS, features, generator=generator)
    drawn = torch.randint(features, (64,), generator=generator)
    return torch.cat([torch.tensor(list(tokens)), drawn])


@torch.inference_mode()
def compute_outputs(model: Any, inputs: ComparisonInputs) -> ModelOutputs:
    """Run a model, with the adapter attached or merged, on the comparison inputs.

    Raises:
        MergeError: if no example has a label.
    """
    log_probabilities = predict_log_probabilities(model, inputs.examples)
    generated_ids = _generate(model, inputs)
    module_outputs = {
        name: module_output(model.get_submodule(name), module_inputs, model)
        for name, module_inputs in inputs.module_inputs.items()
    }
    expert_outputs = {
        name: expert_output(model.get_parameter(name), expert_inputs)
        for name, expert_inputs in inputs.expert_inputs.items()
    }
    return ModelOutputs(log_probabilities, generated_ids, module_outputs, expert_outputs)


@torch.inference_mode()
def expert_output(experts: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Multiply inputs by the matrix of each expert in float32, one expert in memory at a time.

    Args:
        experts: (experts, rows, columns).
        inputs: (trials, columns) float32.

    Returns:
        (experts, trials, rows) float32, on the CPU.
    """
    placed = inputs.to(experts.device)
    return torch.stack([(placed @ expert.float().T).cpu() for expert in experts])


def module_output(module: torch.nn.Module, inputs: torch.Tensor, model: Any) -> torch.Tensor:
    """Run one module of a model, in float32 where the module supports that.

    Args:
        module: module to run.
        inputs: (trials, features) float32, or (ids,) int64 for an embedding.
        model: model that the module belongs to.

    Returns:
        (trials or ids, output features) float32, on the CPU.
    """
    # The module may be on another GPU than the model's inputs.
    device = next(module.parameters()).device
    with in_float32(module) as supported:
        dtype = torch.float32 if supported else model.dtype
        inputs = inputs.to(device, dtype if inputs.is_floating_point() else None)
        output: torch.Tensor = module(inputs)
    return output.float().cpu()


@contextmanager
def in_float32(module: torch.nn.Module) -> Iterator[bool]:
    """Let a module compute in float32, and restore it on exit; 4-bit weights keep their values.

    In half precision, rounding of the outputs often exceeds the change that an adapter makes.

    Yields:
        True if the module computes in float32; False for 8-bit layers, which cannot.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    parts = list(module.modules())
    if any(isinstance(part, Linear8bitLt) for part in parts):
        yield False
        return
    quantized = [part for part in parts if isinstance(part, Linear4bit)]
    quantized_weights = {id(part.weight) for part in quantized}
    halves = [
        (tensor, tensor.data)
        for tensor in (*module.parameters(), *module.buffers())
        if tensor.dtype in (torch.bfloat16, torch.float16) and id(tensor) not in quantized_weights
    ]
    try:
        for tensor, data in halves:
            tensor.data = data.float()
        for part in quantized:
            # The layer's own forward dequantizes to the dtype of its inputs; in float32 that gives
            # other weights than those trained on.
            part.forward = partial(_dequantized_linear, part)
        yield True
    finally:
        for tensor, data in halves:
            tensor.data = data
        for part in quantized:
            del part.forward


def _dequantized_linear(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    return torch.nn.functional.linear(inputs, weight, layer.bias)


@torch.inference_mode()
def predict_log_probabilities(model: Any, examples: Sequence[Example]) -> torch.Tensor:
    """Compute log-probabilities of the first `MAX_POSITIONS` labelled tokens.

    Each is predicted from the position before it, or from its own by a masked language model.

    Returns:
        (positions, vocabulary) float32, on the CPU.

    Raises:
        MergeError: if no example has a label.
    """
    device = input_device(model)
    is_masked = is_masked_model(model)
    logits_of = masked_logits if is_masked else logits_at
    blocks: list[torch.Tensor] = []
    left = MAX_POSITIONS
    for example in examples:
        labels = example.labels if is_masked else example.labels[1:]
        positions = [n for n, label in enumerate(labels) if label != IGNORE_INDEX][:left]
        left -= len(positions)
        if positions:
            columns = torch.tensor(positions, device=device)
            rows = torch.zeros_like(columns)
            batch = to_device(pad_examples([example], 0), device)
            logits = logits_of(model, batch, rows, columns)
            blocks.append(logits.float().log_softmax(dim=-1).cpu())
    if not blocks:
        raise MergeError(
            f"data.validation: no supervised tokens to compare the merged model on (got "
            f"{len(examples)} examples). Fix: set data.validation to rows with supervised tokens"
        )
    return torch.cat(blocks)


def _generate(model: Any, inputs: ComparisonInputs) -> torch.Tensor:
    """Continue the first `TEXTS` prompts greedily; return (TEXTS, TEXT_TOKENS) int64.

    One batch: quantized weights are dequantized in each forward pass, whatever the batch size.
    A masked language model generates no text: (0, TEXT_TOKENS).
    """
    if is_masked_model(model):
        return torch.empty((0, TEXT_TOKENS), dtype=torch.int64)
    prompts = []
    for example in inputs.examples[:TEXTS]:
        first = next((n for n, label in enumerate(example.labels) if label != IGNORE_INDEX), 0)
        prompts.append(example.input_ids[: max(first, 1)])
    generated = generate_batch(
        model,
        prompts,
        inputs.stop_token_ids,
        pad_token_id=inputs.stop_token_ids[0],
        max_new_tokens=TEXT_TOKENS,
    ).cpu()
    texts = torch.full((TEXTS, TEXT_TOKENS), -1)
    texts[: len(generated), : generated.shape[1]] = generated
    stops = torch.isin(texts, torch.tensor(inputs.stop_token_ids)).int()
    # A row that ends early is padded until the last row ends.
    return texts.masked_fill(stops.cumsum(dim=1) - stops > 0, -1)
