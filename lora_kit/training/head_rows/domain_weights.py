"""Weights of rows by their likeness to a target domain.

The odds of a classifier that tells target texts from training texts are, up to the ratio of their
numbers, the ratio of the densities (Bickel et al. 2007, ICML, "Discriminative learning for
differing training and test distributions").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_kit.backbone.load import Backbone
from lora_kit.data.dataset import prepare
from lora_kit.data.row_sets import Rows, concatenate_rows
from lora_kit.data.sources import open_source
from lora_kit.modeling.features import mean_features
from lora_kit.modeling.out_of_fold import out_of_fold
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError
from lora_kit.training.head_rows.probe_texts import (
    row_groups,
    text_features,
    text_of,
    without_folds,
)

FIELD = "data.reweight"
# Fewest texts of the target from which a classifier of the domains is fitted.
MIN_TEXTS = 20


@dataclass(frozen=True, eq=False)
class DomainWeights:
    """Weights of the training rows.

    Attributes:
        weights: (rows,) float64, with mean 1.
        auc: area under the ROC curve of the classifier, out of fold; 0.5: the domains are alike.
    """

    weights: NDArray[np.float64]
    auc: float

    @property
    def effective_rows(self) -> float:
        """Number of equal weights with the same variance of a mean (Kish 1965)."""
        return float(self.weights.sum() ** 2 / (self.weights**2).sum())


def density_ratios(
    probabilities: NDArray[np.float64], is_target: NDArray[np.bool_], clip: float
) -> NDArray[np.float64]:
    """Return the weight of each training row, (training rows,) float64, with mean 1.

    Args:
        probabilities: (rows,) float64, out-of-fold probability of the target domain.
        is_target: (rows,) bool, true for texts of the target.
        clip: largest ratio, and 1 / `clip` the smallest.
    """
    own = probabilities[~is_target]
    odds = own / np.maximum(1 - own, np.finfo(np.float64).tiny)
    ratios = np.clip(odds * (~is_target).sum() / is_target.sum(), 1 / clip, clip)
    return np.asarray(ratios / ratios.mean())


def find_domain_weights(recipe: Recipe, rows: Rows, backbone: Backbone) -> DomainWeights:
    """Weigh rows by a classifier of training texts against texts of the target.

    Args:
        recipe: recipe with the section `data.reweight`.
        rows: training rows.
        backbone: the base, without an adapter or with a disabled one.

    Raises:
        DataError: if a source cannot be read, or has too few texts.
    """
    from sklearn.metrics import roc_auc_score

    spec = recipe.data.reweight
    assert spec is not None  # asked for only with the section
    assert backbone.head is not None  # and only of a head
    target = concatenate_rows(
        [
            open_source(source, recipe.seed, f"{FIELD}.target.{number}.source")
            for number, source in enumerate(spec.target)
        ]
    )
    if len(target) < MIN_TEXTS:
        raise DataError(
            f"{FIELD}.target: too few texts to tell the target from (got {len(target)}, needed: "
            f"{MIN_TEXTS}). Fix: name more texts, or remove data.reweight"
        )
    outputs, objective = backbone.head.outputs, recipe.training.objective
    data = prepare(rows, backbone.tokenizer, recipe.data, 0, objective, outputs)
    texts = [text_of(row) for row in target]
    features = np.concatenate(
        [
            mean_features(backbone, data),
            text_features(backbone, texts, recipe.data.max_length),
        ]
    )
    is_target = np.arange(len(features)) >= len(rows)
    # A text that is in both must not be told by its copy.
    groups = row_groups(concatenate_rows([rows, target]), "clusters")
    found = out_of_fold(features, is_target.astype(np.int64), groups, 2)
    if found is None:
        raise without_folds(FIELD, len(features), groups, "name other texts")
    probabilities = found.probabilities[:, 1]
    weights = density_ratios(probabilities, is_target, spec.clip)
    auc = float(roc_auc_score(is_target, probabilities))
    result = DomainWeights(weights, auc)
    say(
        f"{FIELD}: {len(rows):,} rows are weighed as {result.effective_rows:,.0f} equal ones; a "
        f"classifier tells them from the target with an AUC of {auc:.2f} (0.5: alike)"
    )
    return result
