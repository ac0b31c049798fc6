"""Frozen features of texts or words, computed once and cached, as inputs for training a head.

Features are cached by the hash of backbone, texts and machine, so that training another head, or
with another learning rate, starts at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

from lora_kit.backbone.heads import pad_right
from lora_kit.backbone.load import Backbone
from lora_kit.data.prepared import PreparedData
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.modeling.head_inputs import Pick, find_pick, last_positions, recorded_inputs
from lora_kit.modeling.linear_probe import mean_hidden_states
from lora_kit.modeling.model_inputs import to_device
from lora_kit.modeling.modes import eval_mode
from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.console import meter, say
from lora_kit.runtime.errors import AdapterError
from lora_kit.runtime.files import whole_file
from lora_kit.runtime.hashes import json_sha256
from lora_kit.runtime.locks import one_process_at_a_time

if TYPE_CHECKING:
    from peft import PeftModel

# Raise it when the features of a text change.
VERSION = 1
# Texts per forward pass.
ROWS = 32


@dataclass(frozen=True, eq=False)
class Features:
    """Inputs of a head, one per text.

    Attributes:
        values: (texts, hidden) float32; (texts, 1, hidden) for a head that expects sequences.
        head: trainable module that maps the features to logits.
    """

    values: torch.Tensor
    head: torch.nn.Module

    def batch(self, rows: Sequence[int], targets: torch.Tensor) -> dict[str, Any]:
        """Return the features, `targets` and head for some examples.

        Args:
            rows: indices of the examples among all texts.
            targets: (batch, ...), targets of the same examples.
        """
        chosen = self.values[torch.tensor(list(rows))]
        return {"features": chosen, "targets": targets.to(chosen.device), "head": self.head}


@dataclass(frozen=True, eq=False)
class WordFeatures(Features):
    """Inputs of a head that reads each word.

    Attributes:
        values: (words of all texts, hidden) float32.
        ends: (texts + 1,), number of words before each text, and of all.
    """

    ends: tuple[int, ...]

    def batch(self, rows: Sequence[int], targets: torch.Tensor) -> dict[str, Any]:
        """Return the features, `targets` and head for some examples, both padded on the right.

        Args:
            rows: indices of the examples among all texts.
            targets: (batch, length), labels of the tokens of the same examples; -100 where a token
                is not the first of a word.
        """
        features = pad_sequence(
            [self.values[self.ends[row] : self.ends[row + 1]] for row in rows], batch_first=True
        )
        of_words = torch.full(features.shape[:2], IGNORE_INDEX)
        for row, labels in zip(of_words, targets.cpu(), strict=True):
            known = labels[labels != IGNORE_INDEX]
            row[: len(known)] = known
        return {"features": features, "targets": of_words.to(features.device), "head": self.head}


def frozen_features(backbone: Backbone, model: PeftModel, data: PreparedData) -> Features:
    """Return the features of all examples, in order, from the cache or computed.

    Args:
        backbone: backbone of the model.
        model: classifier whose head is the only trainable part.
        data: tokenized texts.

    Raises:
        AdapterError: if the inputs of the head cannot be identified in this architecture, or
            other parts than the head are randomly initialized.
    """
    assert backbone.head is not None
    if backbone.head.extra_modules:
        raise AdapterError(
            "adapter.method: `head` needs a backbone whose only randomly initialized part is the "
            f"head (got also {', '.join(backbone.head.extra_modules)}). Fix: set lora, last-1 or "
            "full"
        )
    head = backbone.model.get_submodule(backbone.head.module)
    values = cached_features(backbone, data, "", lambda: _compute(backbone, model, head, data))
    values = values.to(backbone.model.device)
    if backbone.head.kind == "token-classification":
        words = [one.supervised for one in data.examples]
        return WordFeatures(values, head, (0, *accumulate(words)))
    return Features(values, head)


def first_head_inputs(
    backbone: Backbone, model: PeftModel, data: PreparedData, count: int
) -> torch.Tensor:
    """Return what a head reads of the first examples, (texts, hidden) float32 on the CPU.

    Args:
        backbone: backbone of the model.
        model: the backbone with its head and adapter.
        data: tokenized texts.
        count: number of examples, if there are so many.

    Raises:
        AdapterError: if the inputs of the head cannot be identified in this architecture.
    """
    assert backbone.head is not None
    head = backbone.model.get_submodule(backbone.head.module)
    first = dataclasses.replace(data, table=data.table.slice(0, count))
    return _compute(backbone, model, head, first).flatten(1)


def cached_features(
    backbone: Backbone, data: PreparedData, kind: str, compute: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """Return the features of all examples, in order; compute and cache them if necessary.

    Args:
        backbone: frozen backbone of the features.
        data: tokenized texts.
        kind: name that distinguishes features of the same texts; empty for inputs of the head.
        compute: function that computes the features, (texts, ...) or (words, ...) float32.

    Returns:
        What `compute` returns.
    """
    path = cache_directory() / "features" / f"{_key(backbone, data, kind)}.safetensors"
    with one_process_at_a_time(path):
        values = _read_cached(path)
        if values is None:
            values = compute()
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as temporary:
                save_file({"features": values}, temporary)
    return values


def mean_features(backbone: Backbone, data: PreparedData) -> NDArray[np.float32]:
    """Return the mean of the last hidden states of each example's tokens, cached.

    Args:
        backbone: the base, without an adapter or with a disabled one.
        data: tokenized texts.

    Returns:
        (texts, hidden size) float32.
    """

    def computed() -> torch.Tensor:
        with eval_mode(backbone.model):
            rows = [example.input_ids for example in data.examples]
            return torch.from_numpy(mean_hidden_states(backbone, rows))

    return np.asarray(cached_features(backbone, data, "mean", computed).numpy())


def _read_cached(path: Path) -> torch.Tensor | None:
    if not path.is_file():
        return None
    try:
        return load_file(path)["features"]
    except (SafetensorError, KeyError) as error:
        say(f"{path}: cannot be read ({error}), so the features are computed again")
        return None


def _key(backbone: Backbone, data: PreparedData, kind: str) -> str:
    """Return the cache key: a sha256 of everything that determines the features."""
    device = backbone.model.device
    parts = [
        VERSION,
        backbone.fingerprint.digest,
        backbone.spec.attention,
        data.digest,
        [version(name) for name in ("torch", "transformers", "bitsandbytes")],
        torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        torch.backends.cpu.get_cpu_capability(),
        *([kind] if kind else []),
    ]
    return json_sha256(parts)


def _compute(
    backbone: Backbone, model: PeftModel, head: torch.nn.Module, data: PreparedData
) -> torch.Tensor:
    """Compute the inputs of the head for all examples, on the CPU.

    Returns:
        (texts, ...) float32; for a head that reads each word, (words, hidden).
    """
    order = np.argsort(-data.lengths, kind="stable").tolist()
    examples, pad = data.examples, backbone.tokenizer.pad_token_id
    features: dict[int, torch.Tensor] = {}
    pick: Pick | None = None
    reads_words = backbone.head is not None and backbone.head.kind == "token-classification"
    with (
        eval_mode(model),
        torch.no_grad(),
        recorded_inputs(head) as inputs,
        meter("features", len(order)) as progress,
    ):
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            batch = pad_right([examples[row].input_ids for row in rows], pad)
            batch = to_device(batch, backbone.model.device)
            logits = model(**batch).logits.float()
            hidden, last = inputs.pop().float(), last_positions(batch["input_ids"], pad)
            inputs.clear()
            pick = pick or find_pick(backbone, head, hidden, last, logits)
            inputs.clear()
            for row, states in zip(rows, pick(hidden, last).cpu(), strict=True):
                features[row] = word_states(states, examples[row]) if reads_words else states
            progress.advance(len(rows))
    ordered = [features[row] for row in range(len(order))]
    return torch.cat(ordered) if reads_words else torch.stack(ordered)


def word_states(states: torch.Tensor, example: Example) -> torch.Tensor:
    """Return the states of the tokens with a label, (words, hidden).

    Args:
        states: (length, hidden), states of the example's tokens, with any padding on the right.
        example: example with the labels of words.
    """
    is_first = torch.tensor(example.labels, device=states.device) != IGNORE_INDEX
    return states[: len(example.labels)][is_first]
