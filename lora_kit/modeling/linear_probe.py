"""Linear probes: linear models of a backbone's frozen features.

Alain & Bengio 2016, arXiv:1610.01644; here a logistic regression for classes, or a ridge regression
for numbers, on the mean of the last hidden states of a text's tokens.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lora_kit.backbone.devices import input_device
from lora_kit.backbone.encoder_decoder import is_encoder_decoder
from lora_kit.backbone.heads import pad_right
from lora_kit.backbone.load import Backbone
from lora_kit.data.labelled import encode_texts
from lora_kit.modeling.model_inputs import to_device
from lora_kit.runtime.console import meter

# Texts per forward pass.
ROWS = 16
# Maximum training texts when backbones are compared: a probe of more texts is hardly better, and
# takes longer than the rest of the comparison.
MAX_TEXTS = 2_000
# Inverse regularization strengths to try, and cross-validation folds.
C_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
FOLDS = 5
# Regularization strengths of a ridge regression to try.
ALPHAS = tuple(10.0**power for power in range(-1, 6))

Weights = Literal["balanced"] | Mapping[int, float] | None


def score_linear_probe(
    backbone: Backbone,
    training: Sequence[tuple[str, str]],
    test: Sequence[tuple[str, str]],
    max_length: int,
    clusters: Sequence[str],
) -> NDArray[np.float64]:
    """Fit a probe on some texts and score its predictions for others.

    Args:
        backbone: backbone that computes the features.
        training: texts with their labels, of at least two classes; up to `MAX_TEXTS` are sampled.
        test: texts with their labels.
        max_length: maximum tokens per text.
        clusters: cluster of each training text, as in `fit_linear_probe`.

    Returns:
        (test,) float64: 1 for a correct prediction, otherwise 0.
    """
    # A random sample, since files are often sorted by class.
    chosen = random.Random(0).sample(range(len(training)), min(MAX_TEXTS, len(training)))
    labels = [training[number][1] for number in chosen]
    features = _features(backbone, [training[number][0] for number in chosen], max_length)
    probe = fit_linear_probe(features, labels, [clusters[number] for number in chosen])
    predicted = probe.predict(_features(backbone, [text for text, _ in test], max_length))
    correct = [a == b for a, (_, b) in zip(predicted, test, strict=True)]
    return np.array(correct, dtype=np.float64)


def fit_linear_probe(
    features: NDArray[np.float32],
    labels: Sequence[Any],
    clusters: Sequence[str] = (),
    weights: Weights = None,
) -> Any:
    """Fit a logistic regression with the penalty selected by stratified cross-validation.

    The penalty with the highest accuracy on held-out folds is used, the strongest in case of a tie.
    If a class has only one row, or the training rows of some fold only one class, the default
    penalty of scikit-learn is used.

    Args:
        features: (rows, features) float32.
        labels: label of each row, of at least two classes.
        clusters: cluster of each row; dependent rows share a cluster, and stay in one fold.
            Default: one cluster per row.
        weights: class weights, as `class_weight` of scikit-learn.

    Returns:
        scikit-learn pipeline of a `StandardScaler` and a `LogisticRegression`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(max_iter=2_000, class_weight=weights)
    probe = make_pipeline(StandardScaler(), regression)
    groups = clusters or [str(number) for number in range(len(labels))]
    n_folds = min(FOLDS, *Counter(labels).values(), len(set(groups)))
    if n_folds < 2:
        return probe.fit(features, labels)
    with warnings.catch_warnings():
        # scikit-learn warns if a fold has no row of some class, which is allowed here.
        warnings.simplefilter("ignore", UserWarning)
        folds = list(StratifiedGroupKFold(n_folds).split(features, labels, groups))
        if any(len({labels[row] for row in rest}) < 2 for rest, _ in folds):
            return probe.fit(features, labels)
        penalties = {"logisticregression__C": C_VALUES}
        search = GridSearchCV(probe, penalties, cv=folds, scoring="accuracy")
        return search.fit(features, labels).best_estimator_


def fit_ridge_probe(
    features: NDArray[np.float32], targets: NDArray[np.float64], clusters: Sequence[str]
) -> Any:
    """Fit a ridge regression with the penalty selected by cross-validation over clusters.

    The penalty with the lowest mean squared error on held-out folds is used; targets are weighed by
    their standard deviation.

    Args:
        features: (rows, features) float32.
        targets: (rows, outputs) float64; no output is constant.
        clusters: cluster of each row; dependent rows share a cluster, and stay in one fold.

    Returns:
        scikit-learn `TransformedTargetRegressor` of a pipeline of `StandardScaler` and `Ridge`.
    """
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaled = (targets - targets.mean(axis=0)) / targets.std(axis=0)
    pipeline = make_pipeline(StandardScaler(), Ridge())
    n_folds = min(FOLDS, len(set(clusters)))
    if n_folds >= 2:
        penalties = {"ridge__alpha": ALPHAS}
        folds = list(GroupKFold(n_folds).split(features, scaled, clusters))
        search = GridSearchCV(pipeline, penalties, cv=folds, scoring="neg_mean_squared_error")
        pipeline = search.fit(features, scaled).best_estimator_
    return TransformedTargetRegressor(pipeline, transformer=StandardScaler()).fit(features, targets)


@dataclass(frozen=True)
class LinearMap:
    """Linear map from features to the outputs of a probe.

    Attributes:
        weight: (outputs, features) float64.
        bias: (outputs,) float64.
        penalty: penalty of the fit, in words.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    penalty: str


def logistic_map(probe: Any, outputs: int | None = None) -> LinearMap:
    """Return the map of a `fit_linear_probe` whose labels are class indices, to logits.

    Args:
        probe: pipeline of a `StandardScaler` and a `LogisticRegression`.
        outputs: number of classes, if some may have no training row; they have the logit -1e9.
    """
    scaler, logistic = probe[0], probe[-1]
    weight = logistic.coef_ / scaler.scale_
    bias = logistic.intercept_ - weight @ scaler.mean_
    if len(logistic.classes_) == 2:
        # scikit-learn has one row for two classes: the log-odds of the second class.
        weight, bias = (np.concatenate([np.zeros_like(one), one]) for one in (weight, bias))
    if outputs is not None:
        own_weight, own_bias = weight, bias
        weight, bias = np.zeros((outputs, weight.shape[1])), np.full(outputs, -1e9)
        weight[logistic.classes_], bias[logistic.classes_] = own_weight, own_bias
    return LinearMap(weight, bias, f"C {logistic.C:g}")


def ridge_map(probe: Any) -> LinearMap:
    """Return the map of a `fit_ridge_probe`, to numbers in the unit of the targets."""
    scaler, ridge, targets = probe.regressor_[0], probe.regressor_[-1], probe.transformer_
    weight = np.atleast_2d(ridge.coef_) / scaler.scale_ * targets.scale_[:, None]
    bias = ridge.intercept_ * targets.scale_ + targets.mean_ - weight @ scaler.mean_
    return LinearMap(weight, bias, f"alpha {ridge.alpha:g}")


def _features(backbone: Backbone, texts: Sequence[str], max_length: int) -> NDArray[np.float32]:
    """Compute the mean hidden states of texts, (texts, hidden size) float32."""
    rows = [ids for ids, _ in encode_texts(texts, backbone.tokenizer, max_length)]
    return mean_hidden_states(backbone, rows)


@torch.inference_mode()
def mean_hidden_states(backbone: Backbone, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Compute the mean of the last hidden states of each row.

    Args:
        backbone: backbone with or without a head; an attached adapter must be disabled.
        rows: token ids of each row, none empty.

    Returns:
        (rows, hidden size) float32.
    """
    hidden_size = backbone.model.config.get_text_config().hidden_size
    states = np.zeros((len(rows), hidden_size), np.float32)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    with meter("features", len(rows)) as progress:
        for start in range(0, len(order), ROWS):
            numbers = order[start : start + ROWS]
            batch = pad_right([rows[number] for number in numbers], backbone.tokenizer.pad_token_id)
            batch = to_device(batch, input_device(backbone.model))
            states[numbers] = pool_hidden_states(backbone, batch).float().cpu().numpy()
            progress.advance(len(numbers))
    return states


def hidden_states(backbone: Backbone, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Compute the last hidden states of all tokens.

    Args:
        backbone: backbone as in `mean_hidden_states`.
        batch: `input_ids` and `attention_mask`, each (batch, length) int64.

    Returns:
        (batch, length, hidden size), in the dtype of the backbone.
    """
    model = backbone.model
    # An encoder-decoder is represented by its encoder.
    stack = model.get_encoder() if is_encoder_decoder(model) else model.base_model
    states: torch.Tensor = stack(**batch).last_hidden_state
    return states


def pool_hidden_states(backbone: Backbone, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Compute the mean of the last hidden states over the tokens of each row.

    Args:
        backbone: backbone as in `mean_hidden_states`.
        batch: `input_ids` and `attention_mask`, each (batch, length) int64.

    Returns:
        (batch, hidden size), in the dtype of the hidden states.
    """
    states = hidden_states(backbone, batch)
    # The last block may be on another GPU than the inputs.
    mask = batch["attention_mask"].unsqueeze(-1).to(states.device)
    return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
