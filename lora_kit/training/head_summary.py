"""End of the training of a head: its unit, its thresholds, and statistics for the baseline."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch

from lora_kit.adapter.saved_heads.classes import SavedClasses
from lora_kit.adapter.saved_heads.embedding import SavedEmbedding
from lora_kit.adapter.saved_heads.kinds import SavedHead
from lora_kit.adapter.saved_heads.labels import SavedLabels
from lora_kit.adapter.saved_heads.masked import SavedMasked
from lora_kit.adapter.saved_heads.numbers import SavedNumbers
from lora_kit.adapter.saved_heads.reward import SavedReward
from lora_kit.adapter.saved_heads.tags import SavedTags
from lora_kit.backbone.heads import Head
from lora_kit.backbone.load import Backbone
from lora_kit.data.entities import OUTSIDE, read_tags
from lora_kit.data.head_targets import class_indices, target_matrix
from lora_kit.data.units import PreparedUnits, Unit
from lora_kit.recipe.embedding import EmbeddingSpec
from lora_kit.recipe.mlm import MlmSpec
from lora_kit.recipe.multi_label import EVEN, MultiLabelSpec
from lora_kit.recipe.objective import HeadObjective
from lora_kit.statistics.multi_label import choose_thresholds
from lora_kit.training.head_losses.numbers import NumberLoss
from lora_kit.training.heads import HeadTask
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.output_layer import output_layer


def finish_head(
    inputs: TrainingInputs, task: HeadTask | None, weights: dict[str, torch.Tensor] | None
) -> SavedHead | None:
    """Complete a trained head before it is saved, and describe it; `None` without a head.

    Args:
        inputs: model, data and recipe; the model of a regression is changed in place.
        task: loss of a head that reads a text.
        weights: full trained weights by name, if the model's own are not complete.
    """
    head, data = inputs.backbone.head, inputs.data
    if head is not None and isinstance(data, PreparedUnits):
        return FINISHES_OF_UNITS[head.kind](inputs, data)
    if head is not None and head.kind == "mlm":
        return _finish_masked(inputs, head)
    if head is None or task is None:
        return None
    return FINISHES[head.kind](inputs, task, weights)


def _finish_masked(inputs: TrainingInputs, head: Head) -> SavedMasked:
    spec = inputs.recipe.mlm or MlmSpec()
    return SavedMasked(inputs.data.size, spec.probability, head.newly_initialized)


def _finish_classes(inputs: TrainingInputs, _: HeadTask, __: object) -> SavedClasses:
    rows = Counter(class_indices(inputs.data))
    return SavedClasses({name: rows[number] for number, name in enumerate(_names(inputs))})


def _finish_numbers(
    inputs: TrainingInputs, task: HeadTask, weights: dict[str, torch.Tensor] | None
) -> SavedNumbers:
    assert isinstance(task.loss, NumberLoss)  # the loss of such a head
    use_own_units(inputs.backbone, task.loss, weights)
    targets = target_matrix(inputs.data)
    means, deviations = (
        dict(zip(_names(inputs), values.tolist(), strict=True))
        for values in (targets.mean(axis=0), targets.std(axis=0))
    )
    return SavedNumbers(len(targets), means, deviations)


def _finish_labels(inputs: TrainingInputs, task: HeadTask, _: object) -> SavedLabels:
    """Choose the thresholds on the held-out rows, unless the recipe gives one."""
    spec, names = inputs.recipe.multi_label or MultiLabelSpec(), _names(inputs)
    held_out = inputs.held_out
    rows = held_out.size if held_out is not None and spec.threshold == "auto" else 0
    if held_out is not None and rows:
        logits, right = task.held_out_outputs(
            inputs.model, inputs.backbone, held_out, inputs.max_tokens_per_pass
        )
        chosen = choose_thresholds(logits.sigmoid().numpy(), right.numpy(), EVEN)
    else:
        chosen = [EVEN if spec.threshold == "auto" else spec.threshold] * len(names)
    targets = target_matrix(inputs.data)
    counts = dict(zip(names, targets.sum(axis=0).astype(int).tolist(), strict=True))
    return SavedLabels(len(targets), counts, dict(zip(names, chosen, strict=True)), rows)


def _finish_tags(inputs: TrainingInputs, _: HeadTask, __: object) -> SavedTags:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in inputs.data.examples:
        for word, tag in read_tags(example.label or "[]"):
            counts[word][tag] += 1
    total = sum(counts.values(), Counter())
    return SavedTags(
        inputs.data.size,
        {name: total[name] for name in _names(inputs)},
        {word: dict(tags) for word, tags in sorted(counts.items()) if set(tags) != {OUTSIDE}},
    )


def _names(inputs: TrainingInputs) -> tuple[str, ...]:
    assert inputs.backbone.head is not None  # only heads have outputs
    return inputs.backbone.head.outputs.names


FINISHES: dict[
    HeadObjective,
    Callable[[TrainingInputs, HeadTask, dict[str, torch.Tensor] | None], SavedHead],
] = {
    "classification": _finish_classes,
    "regression": _finish_numbers,
    "multi-label": _finish_labels,
    "token-classification": _finish_tags,
}


def _finish_reward(_: TrainingInputs, data: PreparedUnits) -> SavedReward:
    return SavedReward(data.size, length_log_odds(data.units))


def _finish_embedding(inputs: TrainingInputs, data: PreparedUnits) -> SavedEmbedding:
    assert inputs.backbone.head is not None  # it holds the pooling
    spec, tokenizer = inputs.recipe.embedding or EmbeddingSpec(), inputs.backbone.tokenizer
    length = min(inputs.recipe.data.max_length, tokenizer.model_max_length)
    return SavedEmbedding(data.size, inputs.backbone.head.pooling, spec.temperature, length)


FINISHES_OF_UNITS: dict[HeadObjective, Callable[[TrainingInputs, PreparedUnits], SavedHead]] = {
    "reward": _finish_reward,
    "embedding": _finish_embedding,
}


def use_own_units(
    backbone: Backbone, loss: NumberLoss, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Change a trained head so that it gives numbers in the unit of the rows.

    Scale and location of the loss become part of the weight and the bias of the output layer, so
    that transformers and PEFT give these numbers without a step of their own.

    Args:
        backbone: backbone whose head was trained, changed in place.
        loss: loss of the training.
        weights: full trained weights by name, which are changed instead; `None` for the model's.
    """
    assert backbone.head is not None  # it was trained
    head = backbone.model.get_submodule(backbone.head.module)
    name, layer = output_layer(head, len(loss.scale))
    prefix = f"{backbone.head.module}.{name}." if name else f"{backbone.head.module}."
    found: dict[str, torch.Tensor] = dict(layer.named_parameters())
    if weights is not None:
        found = {
            part: next(value for key, value in weights.items() if key.endswith(f"{prefix}{part}"))
            for part in found
        }
    scale, location = (
        torch.tensor(values, dtype=torch.float32, device=found["weight"].device)
        for values in (loss.scale, loss.location)
    )
    with torch.no_grad():
        found["weight"].mul_(scale[:, None])
        if "bias" in found:
            found["bias"].mul_(scale).add_(location)


def length_log_odds(pairs: Sequence[Unit]) -> float:
    """Fit a reward model on answer length and return its slope, in log-odds per token.

    Length alone explains much of many trained reward models (Singhal et al. 2023,
    arXiv:2310.03716). The model is Bradley-Terry with the number of tokens as its only feature,
    fitted by maximum likelihood with scikit-learn's default penalty, which keeps the slope finite
    for separable data. The slope is negative if short answers were chosen, 0 if length has no
    influence.

    Args:
        pairs: units of a chosen and a rejected answer to one prompt.
    """
    from sklearn.linear_model import LogisticRegression

    chosen, rejected = (
        np.array([len(unit.examples[side].input_ids) for unit in pairs]) for side in (0, 1)
    )
    longer = (chosen - rejected).astype(np.float64)
    # Each pair in both orders, since scikit-learn requires two classes.
    features = np.concatenate([longer, -longer])[:, None]
    labels = np.repeat([1, 0], len(longer))
    model = LogisticRegression(fit_intercept=False).fit(features, labels)
    return float(model.coef_[0, 0])
