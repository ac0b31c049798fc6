"""What a head was trained on, in a few numbers: all that its baseline is made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lora_kit.backbone.heads import SavedClasses, SavedReward
from lora_kit.backbone.load import Backbone
from lora_kit.data.labelled import classes_of
from lora_kit.data.prepared import PreparedData
from lora_kit.data.units import PreparedUnits, Unit


def learned_by_head(backbone: Backbone, data: PreparedData) -> SavedClasses | SavedReward | None:
    """Of training data; `None` where the backbone has no head."""
    if backbone.head is None:
        return None
    if isinstance(data, PreparedUnits):
        return SavedReward(data.size, log_odds_of_a_token(data.units))
    rows = Counter(classes_of(data))
    return SavedClasses({name: rows[number] for number, name in enumerate(backbone.head.classes)})


def log_odds_of_a_token(pairs: Sequence[Unit]) -> float:
    """How much likelier, in log-odds, an answer is the chosen one for each token that it is longer.

    The reward model that sees nothing but length (Singhal et al. 2023, arXiv:2310.03716, find that
    many a trained one sees little else): Bradley and Terry's model with the tokens of an answer as
    its one feature, by maximum likelihood with scikit-learn's usual penalty, which keeps it finite
    where length tells all. Negative where short answers were chosen, 0 where length tells nothing.

    Args:
        pairs: chosen and rejected answer behind one prompt.
    """
    from sklearn.linear_model import LogisticRegression

    chosen, rejected = (
        np.array([len(unit.examples[side].input_ids) for unit in pairs]) for side in (0, 1)
    )
    longer = (chosen - rejected).astype(np.float64)
    # Each pair from both sides, since a class of its own is asked for.
    features = np.concatenate([longer, -longer])[:, None]
    labels = np.repeat([1, 0], len(longer))
    fitted = LogisticRegression(fit_intercept=False).fit(features, labels)
    return float(fitted.coef_[0, 0])
