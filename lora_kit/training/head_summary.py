"""Summary of the rows a head was trained on, from which its baseline is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lora_kit.adapter.saved import SavedClasses, SavedReward
from lora_kit.backbone.load import Backbone
from lora_kit.data.labelled import class_indices
from lora_kit.data.prepared import PreparedData
from lora_kit.data.units import PreparedUnits, Unit


def summarize_head_training(
    backbone: Backbone, data: PreparedData
) -> SavedClasses | SavedReward | None:
    """Return the class counts, or the length bias, of training rows; `None` without a head."""
    if backbone.head is None:
        return None
    if isinstance(data, PreparedUnits):
        return SavedReward(data.size, length_log_odds(data.units))
    rows = Counter(class_indices(data))
    return SavedClasses({name: rows[number] for number, name in enumerate(backbone.head.classes)})


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
