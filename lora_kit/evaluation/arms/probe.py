"""Arm `probe`: a linear probe of the frozen backbone, fitted to the adapter's training rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lora_kit.backbone.devices import input_device
from lora_kit.backbone.load import Backbone
from lora_kit.data.head_targets import class_indices, target_matrix
from lora_kit.data.prepared import PreparedData
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.modeling.features import cached_features
from lora_kit.modeling.linear_probe import (
    LinearMap,
    Weights,
    fit_linear_probe,
    fit_ridge_probe,
    logistic_map,
    mean_hidden_states,
    pool_hidden_states,
    ridge_map,
)
from lora_kit.modeling.modes import adapter_disabled, eval_mode
from lora_kit.recipe.classification import ClassificationSpec
from lora_kit.recipe.objective import HeadObjective
from lora_kit.recipe.sections import PROBE
from lora_kit.runs.session import Session
from lora_kit.runtime.console import say
from lora_kit.runtime.hashes import json_sha256

# Increase when the same rows can give another probe than before.
PROBE_VERSION = 2


class ProbeModel(torch.nn.Module):
    """Linear model of the features of the frozen backbone."""

    def __init__(self, backbone: Backbone, model: Any, probe: LinearMap):
        """Create the model.

        Args:
            backbone: backbone that computes the features.
            model: the backbone with an adapter, which is disabled for the features.
            probe: fitted probe, from features to logits.
        """
        super().__init__()
        weight, bias = probe.weight, probe.bias
        device = input_device(backbone.model)
        self.weight = torch.nn.Parameter(torch.tensor(weight, device=device), requires_grad=False)
        self.bias = torch.nn.Parameter(torch.tensor(bias, device=device), requires_grad=False)
        self.config = backbone.model.config
        # In a tuple, so that it is no submodule: its mode and parameters belong to other arms.
        self._backbone_and_model = (backbone, model)

    def forward(self, **batch: torch.Tensor) -> SimpleNamespace:
        """Return the logits of the outputs.

        Args:
            batch: `input_ids` and `attention_mask`, each (batch, length), int64.

        Returns:
            `logits`: (batch, outputs), float64.
        """
        backbone, model = self._backbone_and_model
        with eval_mode(model), adapter_disabled(model):
            features = pool_hidden_states(backbone, batch).double().to(self.weight.device)
        return SimpleNamespace(logits=features @ self.weight.T + self.bias)


def probe_arm(session: Session, identity: Sequence[str], data: PreparedData) -> LoadedArms:
    """Return the arm, which is fitted when it is loaded.

    Args:
        session: run of a head that reads a text.
        identity: digests of the backbone, on which the features depend.
        data: rows that the adapter was trained on.
    """
    head = session.backbone.head
    assert head is not None  # only heads have this arm
    parts = [PROBE, PROBE_VERSION, *identity, data.digest]
    if head.kind == "classification":
        parts.append(_class_weights(session))
    arm = Arm(PROBE, json_sha256(parts), nullcontext, roles=("gain",))
    return LoadedArms(lambda: _fit(session, data), (arm,))


def _fit(session: Session, data: PreparedData) -> ProbeModel:
    backbone, model = session.backbone, session.model
    examples = data.examples

    def computed() -> torch.Tensor:
        with eval_mode(model), adapter_disabled(model):
            return torch.from_numpy(mean_hidden_states(backbone, [e.input_ids for e in examples]))

    assert backbone.head is not None  # only heads have this arm
    features = cached_features(backbone, data, "mean", computed).numpy()
    clusters = [example.cluster for example in examples]
    fitted = FITS[backbone.head.kind](session, data, features, clusters)
    say(f"probe: fitted to {len(examples):,} rows, {fitted.penalty} by cross-validation")
    return ProbeModel(backbone, model, fitted)


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


# Fit of a probe by the kind of the head.
FITS: dict[
    HeadObjective,
    Callable[[Session, PreparedData, NDArray[np.float32], Sequence[str]], LinearMap],
] = {"classification": _classes, "regression": _numbers}
