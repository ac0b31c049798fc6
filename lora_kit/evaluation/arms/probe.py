"""Arm `probe`: a linear probe of the frozen backbone, fitted to the adapter's training rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from lora_kit.backbone.devices import input_device
from lora_kit.backbone.load import Backbone
from lora_kit.data.dataset import prepare, validation_rows
from lora_kit.data.head_targets import class_indices, target_matrix
from lora_kit.data.prepared import PreparedData
from lora_kit.data.supervision import IGNORE_INDEX
from lora_kit.evaluation.arms.thresholds import Thresholded
from lora_kit.evaluation.arms.words import TokenTagger
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.modeling.features import cached_features, mean_features
from lora_kit.modeling.linear_probe import (
    LinearMap,
    Weights,
    fit_linear_probe,
    fit_ridge_probe,
    hidden_states,
    logistic_map,
    pool_hidden_states,
    ridge_map,
)
from lora_kit.modeling.modes import adapter_disabled, eval_mode
from lora_kit.modeling.word_probe import fit_word_probe, word_hidden_states
from lora_kit.recipe.classification import ClassificationSpec
from lora_kit.recipe.multi_label import EVEN, MultiLabelSpec
from lora_kit.recipe.objective import HeadObjective
from lora_kit.recipe.sections import PROBE
from lora_kit.runs.session import Session
from lora_kit.runtime.console import say
from lora_kit.runtime.hashes import json_sha256
from lora_kit.statistics.multi_label import choose_thresholds

# Increase when the same rows can give another probe than before.
PROBE_VERSION = 2

States = Callable[[Backbone, Mapping[str, torch.Tensor]], torch.Tensor]


class ProbeModel(torch.nn.Module):
    """Linear model of the features of the frozen backbone."""

    def __init__(
        self,
        backbone: Backbone,
        model: Any,
        probe: LinearMap,
        states: States = pool_hidden_states,
    ):
        """Create the model.

        Args:
            backbone: backbone that computes the features.
            model: the backbone with an adapter, which is disabled for the features.
            probe: fitted probe, from features to logits.
            states: function that computes the features.
        """
        super().__init__()
        weight, bias = probe.weight, probe.bias
        device = input_device(backbone.model)
        self.weight = torch.nn.Parameter(torch.tensor(weight, device=device), requires_grad=False)
        self.bias = torch.nn.Parameter(torch.tensor(bias, device=device), requires_grad=False)
        self.config = backbone.model.config
        # In a tuple, so that it is no submodule: its mode and parameters belong to other arms.
        self._backbone_and_model = (backbone, model)
        self._states = states

    def forward(self, **batch: torch.Tensor) -> SimpleNamespace:
        """Return the logits of the outputs.

        Args:
            batch: `input_ids` and `attention_mask`, each (batch, length), int64.

        Returns:
            `logits`: (batch, outputs), or (batch, length, outputs) of each token, float64.
        """
        backbone, model = self._backbone_and_model
        with eval_mode(model), adapter_disabled(model):
            features = self._states(backbone, batch).double().to(self.weight.device)
        return SimpleNamespace(logits=features @ self.weight.T + self.bias)


def probe_arm(session: Session, identity: Sequence[str], data: PreparedData) -> LoadedArms:
    """Return the arm, which is fitted when it is loaded.

    Args:
        session: run of a head that reads a text.
        identity: digests of the backbone, on which the features depend.
        data: rows that the adapter was trained on.
    """
    head, recipe = session.backbone.head, session.recipe
    assert head is not None  # only heads have this arm
    parts = [PROBE, PROBE_VERSION, *identity, data.digest]
    if head.kind == "classification":
        parts.append(_class_weights(session))
    if head.kind == "multi-label":
        parts += [recipe.multi_label and recipe.multi_label.model_dump(), _held_out(session).digest]
    arm = Arm(PROBE, json_sha256(parts), nullcontext, roles=("gain",))
    return LoadedArms(lambda: _fit(session, data), (arm,))


def _fit(session: Session, data: PreparedData) -> torch.nn.Module:
    backbone, examples = session.backbone, data.examples
    assert backbone.head is not None  # only heads have this arm
    clusters = [example.cluster for example in examples]
    is_of_words = backbone.head.kind == "token-classification"
    features = _word_features(session, data) if is_of_words else _features(session, data)
    fitted = FITS[backbone.head.kind](session, data, features, clusters)
    say(f"probe: fitted to {len(examples):,} rows, {fitted.penalty} by cross-validation")
    if is_of_words:
        return TokenTagger(ProbeModel(backbone, session.model, fitted, hidden_states))
    probe = ProbeModel(backbone, session.model, fitted)
    if backbone.head.kind != "multi-label":
        return probe
    return Thresholded(probe, _thresholds(session, fitted), input_device(backbone.model))


def _features(session: Session, data: PreparedData) -> NDArray[np.float32]:
    """Return the mean hidden states of all examples, (examples, hidden size)."""
    with adapter_disabled(session.model):
        return mean_features(session.backbone, data)


def _word_features(session: Session, data: PreparedData) -> NDArray[np.float32]:
    """Return the last hidden state of each word's first token, (words, hidden size)."""
    backbone, model = session.backbone, session.model

    def computed() -> torch.Tensor:
        with eval_mode(model), adapter_disabled(model):
            return word_hidden_states(backbone, data.examples)

    return np.asarray(cached_features(backbone, data, "words", computed).numpy())


def _classes(
    session: Session, data: PreparedData, features: NDArray[np.float32], clusters: Sequence[str]
) -> LinearMap:
    weights = _class_weights(session)
    return logistic_map(fit_linear_probe(features, class_indices(data), clusters, weights))


def _class_weights(session: Session) -> Weights:
    head = session.backbone.head
    assert head is not None  # only heads have this arm
    spec = session.recipe.classification or ClassificationSpec()
    return spec.weights_of(head.outputs.names)


def _numbers(
    _: Session, data: PreparedData, features: NDArray[np.float32], clusters: Sequence[str]
) -> LinearMap:
    return ridge_map(fit_ridge_probe(features, target_matrix(data), clusters))


def _labels(
    session: Session, data: PreparedData, features: NDArray[np.float32], clusters: Sequence[str]
) -> LinearMap:
    """Fit a logistic regression for each label."""
    head, spec = session.backbone.head, session.recipe.multi_label or MultiLabelSpec()
    assert head is not None  # only heads have this arm
    maps = []
    for name, column in zip(head.outputs.names, target_matrix(data).T, strict=True):
        weights = spec.weights_of(name)
        probe = fit_linear_probe(features, column.astype(int).tolist(), clusters, weights)
        maps.append(logistic_map(probe))
    # Of two classes, the second row is the log-odds of having the label.
    return LinearMap(
        np.stack([one.weight[1] for one in maps]),
        np.array([one.bias[1] for one in maps]),
        ", ".join(one.penalty for one in maps),
    )


def _tags(
    session: Session, data: PreparedData, features: NDArray[np.float32], clusters: Sequence[str]
) -> LinearMap:
    """Fit a logistic regression of the tags of all words."""
    head = session.backbone.head
    assert head is not None  # only heads have this arm
    tags = [[tag for tag in one.labels if tag != IGNORE_INDEX] for one in data.examples]
    of_words = [name for name, own in zip(clusters, tags, strict=True) for _ in own]
    every = [tag for own in tags for tag in own]
    return logistic_map(fit_word_probe(features, every, of_words), len(head.outputs.names))


def _held_out(session: Session) -> PreparedData:
    """Return the rows of data.validation, on which thresholds are chosen."""
    recipe, backbone = session.recipe, session.backbone
    assert backbone.head is not None  # only heads have this arm
    rows = validation_rows(recipe.data, recipe.seed, recipe.training.objective)
    return prepare(rows, backbone.tokenizer, recipe.data, outputs=backbone.head.outputs)


def _thresholds(session: Session, fitted: LinearMap) -> list[float]:
    """Choose the thresholds of the probe as those of the adapter are chosen."""
    spec = session.recipe.multi_label or MultiLabelSpec()
    held_out = _held_out(session)
    if spec.threshold != "auto" or not held_out.size:
        return [EVEN if spec.threshold == "auto" else spec.threshold] * len(fitted.bias)
    logits = _features(session, held_out) @ fitted.weight.T + fitted.bias
    return choose_thresholds(expit(logits), target_matrix(held_out), EVEN)


# Fit of a probe by the kind of the head.
FITS: dict[
    HeadObjective,
    Callable[[Session, PreparedData, NDArray[np.float32], Sequence[str]], LinearMap],
] = {
    "classification": _classes,
    "regression": _numbers,
    "multi-label": _labels,
    "token-classification": _tags,
}
