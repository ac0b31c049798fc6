"""The linear probe: how much of a task a backbone's frozen features hold already.

Alain & Bengio 2016, arXiv:1610.01644; here a logistic regression on the mean of the last hidden
states of a text's tokens.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lora_kit.backbone.encoder_decoder import is_divided
from lora_kit.backbone.heads import pad_right
from lora_kit.backbone.load import Backbone
from lora_kit.data.labelled import encode_texts
from lora_kit.modeling.likelihood import to_device
from lora_kit.runtime.console import meter

ROWS = 16
# Texts to learn from where backbones are compared: a probe of more is hardly better, and takes
# longer than all the rest.
MOST = 2_000
# Inverse strengths of the penalty that are tried, and parts that rows are cut into for it.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
FOLDS = 5

Weights = Literal["balanced"] | Mapping[int, float] | None


def probed(
    backbone: Backbone,
    known: Sequence[tuple[str, str]],
    asked: Sequence[tuple[str, str]],
    longest: int,
    clusters: Sequence[str],
) -> NDArray[np.float64]:
    """Which texts a probe gets right.

    Args:
        backbone: whose features they are.
        known: texts with their labels, two different ones at least.
        asked: texts with their labels.
        longest: tokens of a text that are looked at.
        clusters: of the known texts, as `fitted` takes them.

    Returns:
        (asked,): 1 where it is right.
    """
    # From all over: rows often stand class by class in their file.
    chosen = random.Random(0).sample(range(len(known)), min(MOST, len(known)))
    labels = [known[number][1] for number in chosen]
    features = _features(backbone, [known[number][0] for number in chosen], longest)
    probe = fitted(features, labels, [clusters[number] for number in chosen])
    found = probe.predict(_features(backbone, [text for text, _ in asked], longest))
    return np.array([a == b for a, (_, b) in zip(found, asked, strict=True)], dtype=np.float64)


def fitted(
    features: NDArray[np.float32],
    labels: Sequence[Any],
    clusters: Sequence[str] = (),
    weights: Weights = None,
) -> Any:
    """A logistic regression whose penalty cross-validation has chosen.

    By the share right in parts of the rows that were left out, each class spread over all parts;
    the strongest penalty of several that are as good. Where a class has one row, or what is left
    without some part is of one class, the penalty is scikit-learn's usual one.

    Args:
        features: (rows, features).
        labels: of each row, two different ones at least.
        clusters: rows of one are in the same part, since one gives another away; by default each
            row is its own.
        weights: what a row counts, by its label.

    Returns:
        scikit-learn's pipeline of a `StandardScaler` and a `LogisticRegression`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(max_iter=2_000, class_weight=weights)
    probe = make_pipeline(StandardScaler(), regression)
    groups = clusters or [str(number) for number in range(len(labels))]
    parts = min(FOLDS, *Counter(labels).values(), len(set(groups)))
    if parts < 2:
        return probe.fit(features, labels)
    with warnings.catch_warnings():
        # That a part has no row of a class, which then counts as not known.
        warnings.simplefilter("ignore", UserWarning)
        folds = list(StratifiedGroupKFold(parts).split(features, labels, groups))
        if any(len({labels[row] for row in rest}) < 2 for rest, _ in folds):
            return probe.fit(features, labels)
        penalties = {"logisticregression__C": STRENGTHS}
        search = GridSearchCV(probe, penalties, cv=folds, scoring="accuracy")
        return search.fit(features, labels).best_estimator_


def _features(backbone: Backbone, texts: Sequence[str], longest: int) -> NDArray[np.float32]:
    """(texts, hidden size)."""
    rows = [ids for ids, _ in encode_texts(texts, backbone.tokenizer, longest)]
    return mean_states(backbone, rows)


@torch.inference_mode()
def mean_states(backbone: Backbone, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """(rows, hidden size): the mean of a row's last hidden states.

    Args:
        backbone: with a head or without; an adapter that is attached has to be switched off.
        rows: token ids, none empty.
    """
    found = np.zeros((len(rows), backbone.model.config.get_text_config().hidden_size), np.float32)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    with meter("features", len(rows)) as progress:
        for start in range(0, len(order), ROWS):
            some = order[start : start + ROWS]
            batch = pad_right([rows[number] for number in some], backbone.tokenizer.pad_token_id)
            batch = to_device(batch, backbone.model.device)
            found[some] = mean_state(backbone, batch).float().cpu().numpy()
            progress.advance(len(some))
    return found


def mean_state(backbone: Backbone, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(batch, hidden size) of one forward pass.

    Args:
        backbone: as in `mean_states`.
        batch: `input_ids` and `attention_mask`, each (batch, length) int64.
    """
    model = backbone.model
    # Of an encoder with a decoder, what the encoder makes of the text.
    stack = model.get_encoder() if is_divided(model) else model.base_model
    states: torch.Tensor = stack(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
