"""Arms of a head that reads a text: the adapter with its head, and a baseline without a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from scipy.special import logit

from lora_kit.adapter.saved import adapter_sha256, read_saved_head
from lora_kit.adapter.saved_heads.classes import SavedClasses
from lora_kit.adapter.saved_heads.kinds import SavedHead
from lora_kit.adapter.saved_heads.labels import SavedLabels
from lora_kit.adapter.saved_heads.numbers import SavedNumbers
from lora_kit.adapter.saved_heads.tags import SavedTags
from lora_kit.backbone.devices import input_device
from lora_kit.backbone.load import Backbone
from lora_kit.data.entities import OUTSIDE
from lora_kit.data.training_data import TrainingData
from lora_kit.evaluation.arms.base_or_adapter import base_and_adapter
from lora_kit.evaluation.arms.models import adapter_tokenizer_identity, require_run
from lora_kit.evaluation.arms.probe import probe_arm
from lora_kit.evaluation.arms.thresholds import Thresholded
from lora_kit.evaluation.arms.words import FrequentTags, TokenTagger
from lora_kit.evaluation.engine.arm import LoadedArms
from lora_kit.recipe.sections import HEAD_ARMS, PROBE
from lora_kit.runs.session import Subject
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.hashes import json_sha256


@dataclass(frozen=True)
class Baseline:
    """Answer of the arm `base`, the same for every text or word, from the training rows.

    An untrained head would be a weaker reference: its answers are random.

    Attributes:
        logits: value of each output.
        facts: facts of the report on the outputs and on the arm, by name.
        thresholds: probability from which on a label is predicted; empty for other outputs.
        words: value of each output by word; `logits` are those of other words.
    """

    logits: tuple[float, ...]
    facts: dict[str, str]
    thresholds: tuple[float, ...] = ()
    words: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def baseline_of(head: SavedHead) -> Baseline:
    """Return the baseline of a head: frequencies of classes, labels or tags, or mean numbers."""
    if isinstance(head, SavedClasses):
        total, first = sum(head.rows.values()), head.most_frequent
        return Baseline(
            tuple(math.log(rows / total) for rows in head.rows.values()),
            {
                "Classes": ", ".join(f"{name} ({rows:,} rows)" for name, rows in head.rows.items()),
                "Base": "no model: the most frequent class of the training rows, "
                f"{first} ({head.rows[first] / total:.0%})",
            },
        )
    if isinstance(head, SavedLabels):
        return _label_baseline(head)
    if isinstance(head, SavedTags):
        return _tag_baseline(head)
    assert isinstance(head, SavedNumbers)  # a reward model has arms of its own
    means = [f"{name} {mean:.4g}" for name, mean in head.means.items()]
    return Baseline(
        tuple(head.means.values()),
        {
            "Numbers": ", ".join(
                f"{mean} ± {head.deviations[name]:.4g}"
                for name, mean in zip(head.means, means, strict=True)
            ),
            "Base": f"no model: the mean of the {head.rows:,} training rows, {', '.join(means)}",
        },
    )


def _label_baseline(head: SavedLabels) -> Baseline:
    """Return the frequencies of labels, with thresholds that are chosen as those of the head.

    Of a probability that is the same for all texts, the threshold of the highest F1 is below it.
    """
    shares = {name: count / head.rows for name, count in head.counts.items()}
    if head.validation_rows:
        thresholds = (0.0,) * len(shares)
        decision = "predicted for each text, which has the highest F1"
    else:
        thresholds = tuple(head.thresholds.values())
        decision = "predicted where it is at least the threshold"
    return Baseline(
        tuple(float(logit(share)) for share in shares.values()),
        {
            "Labels": ", ".join(f"{name} ({share:.0%} of rows)" for name, share in shares.items()),
            "Thresholds": ", ".join(f"{name} {one:.2f}" for name, one in head.thresholds.items()),
            "Base": f"no model: the frequency of each label in the training rows, {decision}",
        },
        thresholds,
    )


def _tag_baseline(head: SavedTags) -> Baseline:
    """Return the frequency of the tags of each word, one more than counted, as logarithms.

    Words that are `O` in all training rows have the same frequencies as unknown words.
    """
    names = head.outputs.names
    known = {
        word: tuple(math.log(counts.get(name, 0) + 1) for name in names)
        for word, counts in head.words.items()
    }
    total = sum(head.counts.values())
    outside = head.counts[OUTSIDE] - sum(one.get(OUTSIDE, 0) for one in head.words.values())
    return Baseline(
        tuple(math.log(outside + 1) if name == OUTSIDE else 0.0 for name in names),
        {
            "Tags": ", ".join(f"{name} ({count:,})" for name, count in head.counts.items())
            + f" of {total:,} words in {head.rows:,} rows",
            "Base": "no model: the most frequent tag of each word in the training rows, "
            f"{OUTSIDE} for others",
        },
        words=known,
    )


class ConstantModel(torch.nn.Module):
    """Model that gives every text the same logits."""

    def __init__(self, logits: Sequence[float], config: Any):
        """Create the model.

        Args:
            logits: value of each output.
            config: configuration of the backbone, from which the engine reads the context window.
        """
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits), requires_grad=False)
        self.config = config

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        """Return the same logits for each text.

        Args:
            input_ids: (batch, length), int64; only the batch size is used.

        Returns:
            `logits`: (batch, outputs), float32, the same in each row.
        """
        return SimpleNamespace(logits=self.logits.repeat(len(input_ids), 1))


def deciding(model: Any, head: SavedHead | None, backbone: Backbone) -> Any:
    """Return a model with what its head decides by: tags word for word, or labels by thresholds.

    Args:
        model: model with the adapter.
        head: description of the head that was saved; `None` for a language model.
        backbone: backbone of the model.
    """
    if isinstance(head, SavedTags):
        return TokenTagger(model)
    at = _thresholds(head)
    return Thresholded(model, at, input_device(backbone.model)) if at else model


def _thresholds(head: SavedHead | None) -> list[float]:
    return list(head.thresholds.values()) if isinstance(head, SavedLabels) else []


def loaded_head_arms(
    subject: Subject, names: Sequence[str], rows: Callable[[], TrainingData]
) -> list[LoadedArms]:
    """Return the arms of a head that are models.

    Args:
        subject: adapter to evaluate.
        names: names of the requested arms.
        rows: function that returns the training rows, from which the arm `probe` is fitted.

    Raises:
        EvaluationError: if the head does not support an arm.
    """
    head = _head(subject)
    require_arms(subject, names, HEAD_ARMS[head.outputs.kind])
    backbone, config = subject.backbone, subject.backbone.model.config
    trained = [backbone.fingerprint.digest, backbone.spec.attention]
    trained += adapter_tokenizer_identity(backbone)
    described = [*head.outputs.names, *map(str, _thresholds(head))]
    adapted = json_sha256([*trained, adapter_sha256(subject.adapter), described])
    baseline = baseline_of(head)
    constant: list[object] = [
        list(head.outputs.names),
        list(baseline.logits),
        list(baseline.thresholds),
        *([baseline.words] if baseline.words else []),
    ]
    device = input_device(backbone.model)

    def base() -> torch.nn.Module:
        if isinstance(head, SavedTags):
            return FrequentTags(baseline.logits, baseline.words, config).to(device)
        constant = ConstantModel(baseline.logits, config).to(device)
        at = baseline.thresholds
        return Thresholded(constant, at, device) if at else constant

    models = [
        base_and_adapter(
            base,
            lambda: deciding(subject.model, head, backbone),
            (json_sha256(constant), adapted),
        )
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


def head_facts(subject: Subject) -> dict[str, str]:
    """Return the report's facts on the outputs and on the arm `base`."""
    return baseline_of(_head(subject)).facts


def _head(subject: Subject) -> SavedHead:
    head = read_saved_head(subject.adapter)
    assert head is not None  # the adapter was loaded with such a head
    return head
