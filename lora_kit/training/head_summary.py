"""End of the training of a head: a summary of its rows for the baseline, and its unit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch

from lora_kit.adapter.saved_heads import SavedClasses, SavedHead, SavedNumbers, SavedReward
from lora_kit.backbone.load import Backbone
from lora_kit.data.head_targets import class_indices, target_matrix
from lora_kit.data.prepared import PreparedData
from lora_kit.data.units import PreparedUnits, Unit
from lora_kit.recipe.objective import HeadObjective
from lora_kit.training.head_losses import HeadLoss, NumberLoss, output_layer


def summarize_head_training(backbone: Backbone, data: PreparedData) -> SavedHead | None:
    """Return statistics of the training rows of a head; `None` without a head."""
    if backbone.head is None:
        return None
    if isinstance(data, PreparedUnits):
        return SavedReward(data.size, length_log_odds(data.units))
    return SUMMARIES[backbone.head.kind](data, backbone.head.outputs.names)


def _classes(data: PreparedData, names: Sequence[str]) -> SavedClasses:
    rows = Counter(class_indices(data))
    return SavedClasses({name: rows[number] for number, name in enumerate(names)})


def _numbers(data: PreparedData, names: Sequence[str]) -> SavedNumbers:
    targets = target_matrix(data)
    means, deviations = targets.mean(axis=0).tolist(), targets.std(axis=0).tolist()
    return SavedNumbers(
        len(targets),
        dict(zip(names, means, strict=True)),
        dict(zip(names, deviations, strict=True)),
    )


SUMMARIES: dict[HeadObjective, Callable[[PreparedData, Sequence[str]], SavedHead]] = {
    "classification": _classes,
    "regression": _numbers,
}


def use_own_units(
    backbone: Backbone, loss: HeadLoss, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Change a trained head so that it gives numbers in the unit of the rows.

    Scale and location of the loss become part of the weight and the bias of the output layer, so
    that transformers and PEFT give these numbers without a step of their own. Other heads stay as
    they are.

    Args:
        backbone: backbone whose head was trained, changed in place.
        loss: loss of the training.
        weights: full trained weights by name, which are changed instead; `None` for the model's.
    """
    if not isinstance(loss, NumberLoss):
        return
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
