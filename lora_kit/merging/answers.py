"""What a model answers to fixed questions, with the adapter attached or merged."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lora_kit.data.tokenization import IGNORED, Example
from lora_kit.modeling.generation import generate_batch
from lora_kit.modeling.likelihood import logits_at, pad_examples, to_device
from lora_kit.runtime.errors import MergeError

MOST_POSITIONS = 512
TEXTS, TEXT_TOKENS = 4, 32
# Random inputs that each adapted module is tried on.
TRIALS = 4


@dataclass(frozen=True)
class Questions:
    """What is asked.

    Attributes:
        examples: whose labelled places are predicted.
        modules: names of the modules that the adapter changes, and the inputs they are tried on:
            (trials, features) float32, or (ids,) int64 for an embedding.
        stop_token_ids: generation ends on any of them.
    """

    examples: tuple[Example, ...]
    modules: Mapping[str, torch.Tensor]
    stop_token_ids: tuple[int, ...]

    def save(self, path: Path) -> None:
        """As safetensors."""
        tensors = {f"module/{name}": inputs for name, inputs in self.modules.items()}
        for number, example in enumerate(self.examples):
            tensors[f"input_ids/{number}"] = torch.tensor(example.input_ids)
            tensors[f"labels/{number}"] = torch.tensor(example.labels)
        tensors["stop_token_ids"] = torch.tensor(self.stop_token_ids)
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path) -> Questions:
        """As saved."""
        tensors = load_file(path)
        numbers = range(sum(key.startswith("labels/") for key in tensors))
        examples = tuple(
            Example(
                tuple(tensors[f"input_ids/{n}"].tolist()), tuple(tensors[f"labels/{n}"].tolist())
            )
            for n in numbers
        )
        modules = {
            key.removeprefix("module/"): tensor
            for key, tensor in tensors.items()
            if key.startswith("module/")
        }
        return cls(examples, modules, tuple(tensors["stop_token_ids"].tolist()))


@dataclass(frozen=True)
class Answers:
    """What a model makes of them.

    Attributes:
        log_probabilities: (positions, vocabulary) float32, of the next token.
        texts: (texts, tokens) int64, generated greedily; -1 behind the end.
        outputs: of each module, float32.
    """

    log_probabilities: torch.Tensor
    texts: torch.Tensor
    outputs: Mapping[str, torch.Tensor]


def inputs_for(name: str, features: int, tokens: Sequence[int] = ()) -> torch.Tensor:
    """Inputs that a module is tried on: normal numbers, or token ids where it has an embedding.

    Args:
        name: of the module, by which the numbers differ.
        features: that it takes, or its rows if it is an embedding.
        tokens: ids that are certainly tried; makes it an embedding.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if not tokens:
        return torch.randn(TRIALS, features, generator=generator)
    some = torch.randint(features, (64,), generator=generator)
    return torch.cat([torch.tensor(list(tokens)), some])


@torch.inference_mode()
def answer(model: Any, questions: Questions) -> Answers:
    """Ask a model, with the adapter attached or merged.

    Raises:
        MergeError: if there is nothing to predict.
    """
    predicted = predict(model, questions.examples)
    texts = _generated(model, questions)
    outputs = {
        name: output_of(model.get_submodule(name), inputs, model)
        for name, inputs in questions.modules.items()
    }
    return Answers(predicted, texts, outputs)


def output_of(module: torch.nn.Module, inputs: torch.Tensor, model: Any) -> torch.Tensor:
    """What a module makes of inputs, float32, computed in it wherever the module can."""
    device = next(model.parameters()).device
    with in_float32(module) as can:
        dtype = torch.float32 if can else model.dtype
        inputs = inputs.to(device, dtype if inputs.is_floating_point() else None)
        output: torch.Tensor = module(inputs)
    return output.float().cpu()


@contextmanager
def in_float32(module: torch.nn.Module) -> Iterator[bool]:
    """While open, a module computes in float32; weights in 4 bits keep the values that they have.

    In half precision, the rounding of its outputs is often more than what an adapter changes.

    Yields:
        Whether it does: layers of 8 bits cannot.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    parts = list(module.modules())
    if any(isinstance(part, Linear8bitLt) for part in parts):
        yield False
        return
    packed = [part for part in parts if isinstance(part, Linear4bit)]
    kept = {id(part.weight) for part in packed}
    halves = [
        (tensor, tensor.data)
        for tensor in (*module.parameters(), *module.buffers())
        if tensor.dtype in (torch.bfloat16, torch.float16) and id(tensor) not in kept
    ]
    try:
        for tensor, data in halves:
            tensor.data = data.float()
        for part in packed:
            # Its own product makes the weights anew in the dtype of its inputs: in float32, other
            # ones than those that were trained on.
            part.forward = partial(_unpacked, part)
        yield True
    finally:
        for tensor, data in halves:
            tensor.data = data
        for part in packed:
            del part.forward


def _unpacked(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    return torch.nn.functional.linear(inputs, weight, layer.bias)


@torch.inference_mode()
def predict(model: Any, examples: Sequence[Example]) -> torch.Tensor:
    """Next-token distributions where the examples have labels, at most `MOST_POSITIONS` of them.

    Returns:
        (positions, vocabulary) float32.

    Raises:
        MergeError: if no example has a label.
    """
    device = next(model.parameters()).device
    kept: list[torch.Tensor] = []
    left = MOST_POSITIONS
    for example in examples:
        places = [n for n, label in enumerate(example.labels[1:]) if label != IGNORED][:left]
        left -= len(places)
        if places:
            columns = torch.tensor(places, device=device)
            batch = to_device(pad_examples([example], 0), device)
            logits = logits_at(model, batch, torch.zeros_like(columns), columns)
            kept.append(logits.float().log_softmax(dim=-1).cpu())
    if not kept:
        raise MergeError("no held-out tokens to compare the merged model on; add data.validation")
    return torch.cat(kept)


def _generated(model: Any, questions: Questions) -> torch.Tensor:
    """All at once: quantized weights are unpacked in each pass, however many rows it has."""
    made = generate_batch(
        model,
        [_prompt(example) for example in questions.examples[:TEXTS]],
        questions.stop_token_ids,
        pad_token_id=questions.stop_token_ids[0],
        max_new_tokens=TEXT_TOKENS,
    ).cpu()
    found = torch.full((TEXTS, TEXT_TOKENS), -1)
    found[: len(made), : made.shape[1]] = made
    stops = torch.isin(found, torch.tensor(questions.stop_token_ids)).int()
    # Behind a row's first end it was filled until the last one had ended.
    return found.masked_fill(stops.cumsum(dim=1) - stops > 0, -1)


def _prompt(example: Example) -> tuple[int, ...]:
    first = next((n for n, label in enumerate(example.labels) if label != IGNORED), 0)
    return example.input_ids[: max(first, 1)]
