"""The arm `probe`: a linear probe of the frozen backbone, learned from the adapter's own rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lora_kit.backbone.load import Backbone
from lora_kit.data.labelled import classes_of
from lora_kit.data.prepared import PreparedData
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.modeling.features import cached
from lora_kit.modeling.linear_probe import Weights, fitted, mean_state, mean_states
from lora_kit.modeling.modes import adapter_disabled, eval_mode
from lora_kit.recipe.classification import ClassificationSpec
from lora_kit.runs.session import Session
from lora_kit.runtime.console import say
from lora_kit.runtime.hashes import json_sha256

PROBE = "probe"
# Raise it when the same rows can give another probe than before.
VERSION = 2


class Probe(torch.nn.Module):
    """Logits that a logistic regression makes of the frozen backbone's features."""

    def __init__(self, backbone: Backbone, model: Any, regression: Any):
        """Take over a fitted pipeline.

        Args:
            backbone: whose features it takes.
            model: the backbone with an adapter, which is switched off for them.
            regression: of `linear_probe.fitted`, its labels the numbers of the classes.
        """
        super().__init__()
        scaler, logistic = regression[0], regression[-1]
        weight = logistic.coef_ / scaler.scale_
        bias = logistic.intercept_ - weight @ scaler.mean_
        if len(logistic.classes_) == 2:
            # The one row is the log-odds of the second class.
            weight, bias = (np.concatenate([np.zeros_like(one), one]) for one in (weight, bias))
        device = backbone.model.device
        self.weight = torch.nn.Parameter(torch.tensor(weight, device=device), requires_grad=False)
        self.bias = torch.nn.Parameter(torch.tensor(bias, device=device), requires_grad=False)
        self.config = backbone.model.config
        # Not a part of this module: its mode and its parameters are another arm's.
        self._of = (backbone, model)

    def forward(self, **batch: torch.Tensor) -> SimpleNamespace:
        """Take `input_ids` and `attention_mask` (batch, length); return `logits` (batch, classes).

        The logits are float64.
        """
        backbone, model = self._of
        with eval_mode(model), adapter_disabled(model):
            features = mean_state(backbone, batch).double()
        return SimpleNamespace(logits=features @ self.weight.T + self.bias)


def probe_arm(session: Session, identity: Sequence[str], data: PreparedData) -> LoadedArms:
    """The arm, which is fitted when it is first asked.

    Args:
        session: of a classifier's run, whose rows it learns from.
        identity: digests of the backbone, on which the features depend.
        data: the rows that the adapter was trained on.
    """
    recipe, head = session.recipe, session.backbone.head
    assert head is not None  # the arms of a classifier
    weights = _weights(recipe.classification or ClassificationSpec(), head.classes)
    known = json_sha256([PROBE, VERSION, *identity, data.digest, weights])
    arm = Arm(PROBE, known, nullcontext, roles=("gain",))
    return LoadedArms(lambda: _fitted(session, data, weights), (arm,))


def _weights(spec: ClassificationSpec, classes: tuple[str, ...]) -> Weights:
    """What rows count in the training of the adapter, they count here."""
    given = spec.class_weights
    if isinstance(given, dict):
        return {number: float(given.get(name, 1.0)) for number, name in enumerate(classes)}
    return "balanced" if given == "balanced" else None


def _fitted(session: Session, data: PreparedData, weights: Weights) -> Probe:
    backbone, model = session.backbone, session.model
    examples = data.examples

    def computed() -> torch.Tensor:
        with eval_mode(model), adapter_disabled(model):
            return torch.from_numpy(mean_states(backbone, [e.input_ids for e in examples]))

    features = cached(backbone, data, "mean", computed)
    found = fitted(features.numpy(), classes_of(data), [e.cluster for e in examples], weights)
    say(f"probe: of {len(examples):,} rows; C {found[-1].C:g} by cross-validation")
    return Probe(backbone, model, found)
