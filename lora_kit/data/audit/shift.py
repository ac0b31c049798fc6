"""Distribution shift between training rows and other rows: a classifier two-sample test.

Lopez-Paz & Oquab 2017 (arXiv:1610.06545): if two samples have the same distribution, no classifier
separates them. The classifier here is a logistic regression on TF-IDF of words and word pairs,
cross-validated with all rows of a cluster in one fold. The paper reports accuracy; the area under
the ROC curve does not depend on the sizes of the samples.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.stats import norm, t

from lora_kit.data.audit.findings import Shift
from lora_kit.data.audit.item import VALIDATION, AuditedItem, held_out_items
from lora_kit.data.rows import Row

Flags = NDArray[np.bool_]

MAX_ROWS = 2000
"""Maximum rows compared per sample."""
MIN_ROWS = 10
"""Minimum rows per sample."""
_FOLDS = 5
# Characters from the start of a document, which suffice to recognize its kind.
_CHARACTERS = 20_000


@dataclass
class TrainingSample:
    """Sample of up to `MAX_ROWS` training rows, drawn before the rows are read.

    Attributes:
        chosen: indices of the sampled rows.
        items: the sampled rows read so far, as items.
    """

    chosen: frozenset[int]
    items: list[AuditedItem] = field(default_factory=list)

    @classmethod
    def of(cls, rows: int) -> TrainingSample:
        """Draw the sample for a number of rows; the same number gives the same sample."""
        return cls(frozenset(_sample_indices(rows)))

    def update(self, block: Sequence[Row], first_row: int) -> None:
        """Add the sampled rows of a block.

        Args:
            block: consecutive rows.
            first_row: index of the first row of the block among all rows.
        """
        self.items += held_out_items(
            row for number, row in enumerate(block, start=first_row) if number in self.chosen
        )


@dataclass(frozen=True)
class ScoredFold:
    """Held-out fold with the scores of the classifier trained on the other folds.

    Attributes:
        scores: (rows,) float64, decision function; larger for rows classified as others.
        labels: (rows,) bool, true for others.
        clusters: (rows,) int64, index of the cluster.
    """

    scores: NDArray[np.float64]
    labels: Flags
    clusters: NDArray[np.int64]

    @property
    def sizes(self) -> tuple[int, int]:
        """Return the number of training rows and of others."""
        others = int(self.labels.sum())
        return len(self.labels) - others, others

    def placements(self) -> NDArray[np.float64]:
        """Compute the fraction of rows of the other sample that each row is ordered correctly with.

        Returns:
            (rows,) float64.
        """
        rows, others = self.scores[~self.labels], self.scores[self.labels]
        ordered = (others > rows[:, None]) + 0.5 * (others == rows[:, None])
        shares = np.empty(len(self.scores))
        shares[~self.labels] = ordered.mean(axis=1)
        shares[self.labels] = ordered.mean(axis=0)
        return shares


def _sample_indices(count: int) -> list[int]:
    return sorted(random.Random("shift").sample(range(count), min(count, MAX_ROWS)))


def shifts(
    training: TrainingSample, held_out: Sequence[Row], items: Sequence[AuditedItem]
) -> list[Shift]:
    """Compare training rows with the held-out rows and with the items of each gain suite.

    A suite with fewer than `MIN_ROWS` items, or with items of one cluster only, is skipped.
    """
    others = {VALIDATION: held_out_items(held_out[n] for n in _sample_indices(len(held_out)))}
    for item in items:
        if item.gain:
            others.setdefault(item.suite, []).append(item)
    results = [
        _shift(name, training.items, [sample[n] for n in _sample_indices(len(sample))])
        for name, sample in others.items()
    ]
    return [one for one in results if one is not None]


def _shift(name: str, rows: Sequence[AuditedItem], others: Sequence[AuditedItem]) -> Shift | None:
    if min(len(rows), len(others)) < MIN_ROWS:
        return None
    # If the others have no answers, only the prompts are compared.
    with_answers = any(item.answers for item in others)
    texts = [_text(item, with_answers) for item in [*rows, *others]]
    groups = [item.cluster or item.id for item in [*rows, *others]]
    labels = np.repeat([False, True], [len(rows), len(others)])
    return estimate_shift(name, _score_folds(texts, labels, groups))


def _text(item: AuditedItem, with_answer: bool) -> str:
    answer = item.answers[0] if item.answers and with_answer else ""
    prompt = item.prompt if item.prompt or with_answer else item.answers[0]
    return f"{prompt}\n{answer}"


def count_words(texts: Sequence[str]) -> csr_matrix:
    """Count the words and word pairs at the start of each text.

    Returns:
        (texts, 65536) float64, sparse; a column is a hash of a word or a pair.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        ngram_range=(1, 2),
        token_pattern=r"\w+",
        n_features=2**16,
        alternate_sign=False,
        norm=None,
    )
    counts: csr_matrix = vectorizer.transform([text[:_CHARACTERS] for text in texts])
    return counts


def _score_folds(texts: Sequence[str], labels: Flags, groups: Sequence[str]) -> list[ScoredFold]:
    """Cross-validate the classifier; return no folds if a sample has only one cluster."""
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    counts = count_words(texts)
    # Columns without a word would have coefficients of 0, and take most of the time.
    used = counts[:, np.unique(counts.indices)]
    features = TfidfTransformer(sublinear_tf=True).fit_transform(used)
    clusters = np.unique(groups, return_inverse=True)[1]
    fewest = min(len(set(clusters[labels])), len(set(clusters[~labels])))
    if fewest < 2:
        return []
    scored = []
    folds = StratifiedGroupKFold(min(_FOLDS, fewest), shuffle=True, random_state=0)
    for trained, tested in folds.split(features, labels, clusters):
        if len(set(labels[trained])) == len(set(labels[tested])) == 2:
            classifier = LogisticRegression(class_weight="balanced", max_iter=200)
            classifier.fit(features[trained], labels[trained])
            scores = classifier.decision_function(features[tested])
            scored.append(ScoredFold(scores, labels[tested], clusters[tested]))
    return scored


def estimate_shift(name: str, folds: Sequence[ScoredFold]) -> Shift | None:
    """Estimate the area under the ROC curve with its interval; `None` without folds.

    The interval is for clustered data (Obuchowski 1997, Biometrics 53:567), from the influence of
    each cluster on the area. Rows are compared only within a fold: each fold has its own
    classifier, whose threshold depends on the class sizes it was trained on.
    """
    if not folds:
        return None
    sizes = np.array([fold.sizes for fold in folds])
    pairs = sizes.prod(axis=1)
    weights = pairs / pairs.sum()
    placements = [fold.placements() for fold in folds]
    areas = [own[fold.labels].mean() for own, fold in zip(placements, folds, strict=True)]
    auc = float(weights @ areas)
    influence = np.concatenate(
        [
            weight * (own - auc) / np.where(fold.labels, *fold.sizes[::-1])
            for weight, own, fold in zip(weights, placements, folds, strict=True)
        ]
    )
    labels = np.concatenate([fold.labels for fold in folds])
    clusters = np.concatenate([fold.clusters for fold in folds])
    count = len(set(clusters))
    deviation = math.sqrt((np.bincount(clusters, influence) ** 2).sum() * count / max(count - 1, 1))
    freedom = max(min(len(set(clusters[labels])), len(set(clusters[~labels]))) - 1, 1)
    half = float(t.ppf(0.975, freedom)) * deviation
    # With perfect separation the deviation is 0; the p-value then comes from the null distribution.
    chance = math.sqrt((pairs * (sizes.sum(axis=1) + 1) / 12).sum()) / pairs.sum()
    by_clusters = t.sf((auc - 0.5) / deviation, freedom) if deviation else 0.0
    return Shift(
        other=name,
        rows=int(sizes[:, 0].sum()),
        others=int(sizes[:, 1].sum()),
        auc=auc,
        low=max(auc - half, 0.0),
        high=min(auc + half, 1.0),
        p_value=float(max(by_clusters, norm.sf((auc - 0.5) / chance))),
    )
