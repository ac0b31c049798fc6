"""The arms of a classifier: the adapter with its head, and what knows the training rows alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch

from lora_kit.adapter.attach import adapter_sha256
from lora_kit.backbone.heads import SavedClasses, saved_head
from lora_kit.data.training_data import TrainingData
from lora_kit.evaluation.arms.probe import PROBE, probe_arm
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.evaluation.engine.retrieval import RETRIEVAL
from lora_kit.recipe.classification import ARMS
from lora_kit.runs.session import Subject
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.hashes import json_sha256


class Frequencies(torch.nn.Module):
    """What an untrained head is compared with: every text is given the training rows' frequencies.

    Its choice is the most frequent class. A head that has learned nothing would be a coin, which
    everything is better than.
    """

    def __init__(self, classes: SavedClasses, config: Any):
        """Take over how often each class was there.

        Args:
            classes: with their training rows.
            config: of the backbone, which the engine asks for its window.
        """
        super().__init__()
        total = sum(classes.rows.values())
        shares = [math.log(rows / total) for rows in classes.rows.values()]
        self.shares = torch.nn.Parameter(torch.tensor(shares), requires_grad=False)
        self.config = config

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        """Take (batch, length); return `logits` (batch, classes), the same in each row."""
        return SimpleNamespace(logits=self.shares.repeat(len(input_ids), 1))


def loaded_class_arms(
    subject: Subject, names: Sequence[str], rows: Callable[[], TrainingData]
) -> list[LoadedArms]:
    """Return the arms that are models.

    Args:
        subject: what is evaluated.
        names: the arms that were asked for.
        rows: returns the rows of the training, which the arm `probe` learns from.

    Raises:
        EvaluationError: if an arm cannot be asked for classes.
    """
    require_arms(subject, names, ARMS["classification"])
    classes = _classes(subject)
    backbone, config = subject.backbone, subject.backbone.model.config
    trained = [backbone.fingerprint.digest, backbone.spec.attention]
    adapted = json_sha256([*trained, adapter_sha256(subject.adapter), list(classes.names)])
    frequencies = json_sha256(list(classes.rows.items()))
    models = [
        LoadedArms(
            lambda: Frequencies(classes, config).to(backbone.model.device),
            (Arm("base", frequencies, nullcontext, roles=("gain",)),),
        ),
        LoadedArms(lambda: subject.model, (Arm("adapter", adapted, nullcontext, roles=("gain",)),)),
    ]
    if subject.session is not None and PROBE in names:
        models.append(probe_arm(subject.session, trained, rows().prepared))
    return models


def require_arms(subject: Subject, names: Sequence[str], possible: Sequence[str]) -> None:
    """Refuse what asks a language model, or rows that are not there.

    Raises:
        EvaluationError: if one of the arms does.
    """
    unknown = [name for name in names if name not in possible]
    if unknown:
        raise EvaluationError(
            f"{subject.adapter}: arm {unknown[0]}: not with a head; possible: {', '.join(possible)}"
        )
    absent = [name for name in names if name in (RETRIEVAL, PROBE)]
    if subject.session is None and absent:
        raise EvaluationError(
            f"{subject.adapter}: arm {absent[0]} needs a run, with its recipe and data; this is an "
            "adapter alone"
        )


def class_facts(subject: Subject) -> dict[str, str]:
    """What the report says of the classes, and of what the adapter is compared with."""
    classes = _classes(subject)
    total, first = sum(classes.rows.values()), classes.most_frequent
    return {
        "Classes": ", ".join(f"{name} ({rows:,} rows)" for name, rows in classes.rows.items()),
        "Base": "no model: the most frequent class of the training rows, "
        f"{first} ({classes.rows[first] / total:.0%})",
    }


def _classes(subject: Subject) -> SavedClasses:
    found = saved_head(subject.adapter)
    assert isinstance(found, SavedClasses)  # it was loaded with such a head
    return found
