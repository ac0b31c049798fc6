"""Arms of a classifier: the adapter with its head, and a baseline of class frequencies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch

from lora_kit.adapter.saved import SavedClasses, adapter_sha256, read_saved_head
from lora_kit.backbone.devices import input_device
from lora_kit.data.training_data import TrainingData
from lora_kit.evaluation.arms.models import adapter_tokenizer_identity, require_run
from lora_kit.evaluation.arms.probe import probe_arm
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.recipe.sections import HEAD_ARMS, PROBE
from lora_kit.runs.session import Subject
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.hashes import json_sha256


class ClassFrequencyBaseline(torch.nn.Module):
    """Model that assigns every text the class frequencies of the training rows.

    The arm `base` of a classifier, which predicts the most frequent class. An untrained head would
    be a weaker reference: its predictions are random.
    """

    def __init__(self, classes: SavedClasses, config: Any):
        """Create the baseline.

        Args:
            classes: classes with their numbers of training rows.
            config: configuration of the backbone, from which the engine reads the context window.
        """
        super().__init__()
        total = sum(classes.rows.values())
        shares = [math.log(rows / total) for rows in classes.rows.values()]
        self.shares = torch.nn.Parameter(torch.tensor(shares), requires_grad=False)
        self.config = config

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        """Return the log-frequencies of the classes.

        Args:
            input_ids: (batch, length), int64; only the batch size is used.

        Returns:
            `logits`: (batch, classes), float32, the same in each row.
        """
        return SimpleNamespace(logits=self.shares.repeat(len(input_ids), 1))


def loaded_class_arms(
    subject: Subject, names: Sequence[str], rows: Callable[[], TrainingData]
) -> list[LoadedArms]:
    """Return the arms of a classifier that are models.

    Args:
        subject: adapter to evaluate.
        names: names of the requested arms.
        rows: function that returns the training rows, from which the arm `probe` is fitted.

    Raises:
        EvaluationError: if a classifier does not support an arm.
    """
    require_arms(subject, names, HEAD_ARMS["classification"])
    classes = _classes(subject)
    backbone, config = subject.backbone, subject.backbone.model.config
    trained = [backbone.fingerprint.digest, backbone.spec.attention]
    trained += adapter_tokenizer_identity(backbone)
    adapted = json_sha256([*trained, adapter_sha256(subject.adapter), list(classes.names)])
    frequencies = json_sha256(list(classes.rows.items()))
    models = [
        LoadedArms(
            lambda: ClassFrequencyBaseline(classes, config).to(input_device(backbone.model)),
            (Arm("base", frequencies, nullcontext, roles=("gain",)),),
        ),
        LoadedArms(lambda: subject.model, (Arm("adapter", adapted, nullcontext, roles=("gain",)),)),
    ]
    if subject.session is not None and PROBE in names:
        models.append(probe_arm(subject.session, trained, rows().prepared))
    return models


def require_arms(subject: Subject, names: Sequence[str], possible: Sequence[str]) -> None:
    """Refuse arms that a model with a head does not support.

    Raises:
        EvaluationError: if an arm is not possible, or needs training rows without a run.
    """
    unknown = [name for name in names if name not in possible]
    if unknown:
        raise EvaluationError(
            f"{subject.adapter}: arms: not supported with a head (got {unknown[0]}). Fix: use "
            f"{', '.join(possible)}"
        )
    require_run(subject, names)


def class_facts(subject: Subject) -> dict[str, str]:
    """Return the report's facts on the classes and on the arm `base`."""
    classes = _classes(subject)
    total, first = sum(classes.rows.values()), classes.most_frequent
    return {
        "Classes": ", ".join(f"{name} ({rows:,} rows)" for name, rows in classes.rows.items()),
        "Base": "no model: the most frequent class of the training rows, "
        f"{first} ({classes.rows[first] / total:.0%})",
    }


def _classes(subject: Subject) -> SavedClasses:
    head = read_saved_head(subject.adapter)
    assert isinstance(head, SavedClasses)  # the adapter was loaded with such a head
    return head
