"""Arm `probe`: a linear probe of the frozen backbone, fitted to the adapter's training rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lora_kit.backbone.devices import input_device
from lora_kit.backbone.load import Backbone
from lora_kit.data.labelled import class_indices
from lora_kit.data.prepared import PreparedData
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.modeling.features import cached_features
from lora_kit.modeling.linear_probe import (
    Weights,
    fit_linear_probe,
    mean_hidden_states,
    pool_hidden_states,
)
from lora_kit.modeling.modes import adapter_disabled, eval_mode
from lora_kit.recipe.classification import ClassificationSpec
from lora_kit.recipe.sections import PROBE
from lora_kit.runs.session import Session
from lora_kit.runtime.console import say
from lora_kit.runtime.hashes import json_sha256

# Increase when the same rows can give another probe than before.
PROBE_VERSION = 2


class ProbeModel(torch.nn.Module):
    """Logistic regression on the features of the frozen backbone."""

    def __init__(self, backbone: Backbone, model: Any, regression: Any):
        """Create the model from a fitted pipeline.

        Args:
            backbone: backbone that computes the features.
            model: the backbone with an adapter, which is disabled for the features.
            regression: pipeline from `fit_linear_probe`, whose labels are class indices.
        """
        super().__init__()
        scaler, logistic = regression[0], regression[-1]
        weight = logistic.coef_ / scaler.scale_
        bias = logistic.intercept_ - weight @ scaler.mean_
        if len(logistic.classes_) == 2:
            # scikit-learn has one row for two classes: the log-odds of the second class.
            weight, bias = (np.concatenate([np.zeros_like(one), one]) for one in (weight, bias))
        device = input_device(backbone.model)
        self.weight = torch.nn.Parameter(torch.tensor(weight, device=device), requires_grad=False)
        self.bias = torch.nn.Parameter(torch.tensor(bias, device=device), requires_grad=False)
        self.config = backbone.model.config
        # In a tuple, so that it is no submodule: its mode and parameters belong to other arms.
        self._backbone_and_model = (backbone, model)

    def forward(self, **batch: torch.Tensor) -> SimpleNamespace:
        """Return the logits of the classes.

        Args:
            batch: `input_ids` and `attention_mask`, each (batch, length), int64.

        Returns:
            `logits`: (batch, classes), float64.
        """
        backbone, model = self._backbone_and_model
        with eval_mode(model), adapter_disabled(model):
            features = pool_hidden_states(backbone, batch).double().to(self.weight.device)
        return SimpleNamespace(logits=features @ self.weight.T + self.bias)


def probe_arm(session: Session, identity: Sequence[str], data: PreparedData) -> LoadedArms:
    """Return the arm, which is fitted when it is loaded.

    Args:
        session: session of a classifier's run.
        identity: digests of the backbone, on which the features depend.
        data: rows that the adapter was trained on.
    """
    recipe, head = session.recipe, session.backbone.head
    assert head is not None  # only classifiers have this arm
    weights = (recipe.classification or ClassificationSpec()).weights_of(head.classes)
    probe_identity = json_sha256([PROBE, PROBE_VERSION, *identity, data.digest, weights])
    arm = Arm(PROBE, probe_identity, nullcontext, roles=("gain",))
    return LoadedArms(lambda: _fit(session, data, weights), (arm,))


def _fit(session: Session, data: PreparedData, weights: Weights) -> ProbeModel:
    backbone, model = session.backbone, session.model
    examples = data.examples

    def computed() -> torch.Tensor:
        with eval_mode(model), adapter_disabled(model):
            return torch.from_numpy(mean_hidden_states(backbone, [e.input_ids for e in examples]))

    features = cached_features(backbone, data, "mean", computed)
    regression = fit_linear_probe(
        features.numpy(), class_indices(data), [e.cluster for e in examples], weights
    )
    say(f"probe: fitted to {len(examples):,} rows, C {regression[-1].C:g} by cross-validation")
    return ProbeModel(backbone, model, regression)
