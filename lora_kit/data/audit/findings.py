"""Findings of an audit: counts, shares and the origins of a few examples, never the texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lora_kit.data.audit.label_errors import LabelErrors

# Examples named by each finding.
EXAMPLES = 5


@dataclass(frozen=True)
class DuplicatePair:
    """Row that duplicates an earlier row.

    Attributes:
        origin: origin of the row.
        earlier: origin of the earlier row.
        similarity: 1 if only case and white space differ, otherwise the estimated Jaccard
            similarity of their word 5-grams.
    """

    origin: str
    earlier: str
    similarity: float


@dataclass(frozen=True)
class Duplicates:
    """Counts of duplicate rows.

    Attributes:
        rows: all rows.
        exact: rows that equal an earlier row except for case and white space.
        near: other rows whose word 5-grams have a Jaccard similarity of at least 0.8 to those of
            an earlier row.
        examples: the first duplicates, exact ones first.
    """

    rows: int
    exact: int
    near: int
    examples: tuple[DuplicatePair, ...] = ()

    @property
    def share(self) -> float:
        """Return the fraction of rows that are exact duplicates."""
        return self.exact / max(self.rows, 1)


@dataclass(frozen=True)
class Leak:
    """Evaluation item and the training row that contains it.

    Attributes:
        item: id of the item.
        origin: origin of the training row.
        kind: `exact`; `near` if the row has at least 0.7 of the item; `prompt` if the row lacks
            the answer.
        coverage: fraction of the item's n-grams found in the row.
    """

    item: str
    origin: str
    kind: str
    coverage: float


@dataclass(frozen=True)
class Leakage:
    """Items of one task found in training rows.

    Attributes:
        suite: name of the suite.
        task: name of the task.
        items: items of the task.
        exact: items whose prompt and answer are in a training row word for word.
        near: other items with at least 0.7 of prompt and answer in a training row.
        prompts: other items whose prompt is in a training row, with another answer or none.
        unchecked: items without any word to search for.
        examples: the first leaks, then prompts.
    """

    suite: str
    task: str
    items: int
    exact: int
    near: int
    prompts: int
    unchecked: int
    examples: tuple[Leak, ...] = ()

    @property
    def leaked(self) -> int:
        """Return the number of items whose prompt and answer are in a training row."""
        return self.exact + self.near

    @property
    def share(self) -> float:
        """Return the fraction of items that leaked."""
        return self.leaked / max(self.items, 1)


@dataclass(frozen=True)
class SharedGroups:
    """Clusters of one task, or of the held-out rows, that have training rows as well.

    Attributes:
        suite: name of the suite, or `data.validation`.
        task: name of the task.
        items: items of the task.
        shared: items whose cluster has training rows.
        examples: names of the first such clusters.
    """

    suite: str
    task: str
    items: int
    shared: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class LengthStatistics:
    """Distribution of the example lengths, in tokens.

    Attributes:
        p50: median.
        p90: 90th percentile.
        p99: 99th percentile.
        longest: maximum.
        histogram: (maximum length, examples) of each bucket, in ascending order.
    """

    p50: int
    p90: int
    p99: int
    longest: int
    histogram: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class BrokenTokens:
    """Supervised tokens that hold only some bytes of a character.

    Attributes:
        supervised: supervised tokens.
        broken: supervised tokens that are parts of a character.
        scripts: broken tokens by script, such as `DEVANAGARI`, or `symbols`.
        examples: origins of the first rows with broken tokens.
    """

    supervised: int
    broken: int
    scripts: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Return the fraction of supervised tokens that are parts of a character."""
        return self.broken / max(self.supervised, 1)


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of the tokenized rows.

    Attributes:
        rows: all rows.
        examples: examples with a supervised token.
        truncated: truncated examples.
        dropped: rows without a supervised token.
        lengths: distribution of the example lengths.
        pieces: supervised tokens that are parts of a character.
        truncated_examples: origins of the first truncated examples.
        dropped_examples: origins of the first dropped rows.
    """

    rows: int
    examples: int
    truncated: int
    dropped: int
    lengths: LengthStatistics
    pieces: BrokenTokens
    truncated_examples: tuple[str, ...] = ()
    dropped_examples: tuple[str, ...] = ()

    @property
    def truncated_share(self) -> float:
        """Return the fraction of examples that are truncated."""
        return self.truncated / max(self.examples, 1)

    @property
    def dropped_share(self) -> float:
        """Return the fraction of rows without a supervised token."""
        return self.dropped / max(self.rows, 1)


@dataclass(frozen=True)
class ClassBalance:
    """Rows per class; empty if rows have no label."""

    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Return the size of the smallest class divided by the largest; 1 without classes."""
        return min(self.counts.values()) / max(self.counts.values()) if self.counts else 1.0


@dataclass(frozen=True)
class Shift:
    """Accuracy of a classifier that separates training rows from other rows.

    Attributes:
        other: the other rows: `data.validation`, or the name of a suite.
        rows: training rows compared.
        others: other rows compared.
        auc: area under the ROC curve: 0.5 for chance, 1 for perfect separation.
        low: lower bound of the 95% interval of the area.
        high: upper bound of the 95% interval of the area.
        p_value: one-sided p-value of an area this large by chance.
    """

    other: str
    rows: int
    others: int
    auc: float
    low: float
    high: float
    p_value: float

    @property
    def significant(self) -> bool:
        """Return True if the classifier is significantly better than chance."""
        return self.low > 0.5 and self.p_value < 0.05


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Attributes:
        duplicates: duplicate rows.
        leakage: evaluation items in training rows, one entry per task.
        validation: held-out rows in training rows; `None` without held-out rows.
        tokens: statistics of the tokenized rows.
        classes: rows per class.
        shifts: comparisons with the held-out rows and each gain suite, if both sides have enough
            rows.
        problems: messages for exceeded limits of `data.audit`.
        warnings: messages for findings that are probably not intended.
        seconds: duration of the audit.
        label_errors: suspected label errors, if the recipe asks for a search.
        groups: gain tasks and held-out rows of which clusters have training rows as well.
    """

    duplicates: Duplicates
    leakage: tuple[Leakage, ...]
    validation: Leakage | None
    tokens: TokenStatistics
    classes: ClassBalance
    shifts: tuple[Shift, ...]
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    label_errors: LabelErrors | None = None
    groups: tuple[SharedGroups, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as a JSON-serializable dictionary, shares included."""
        value = asdict(self)
        value["duplicates"]["share"] = self.duplicates.share
        for one, leakage in zip(value["leakage"], self.leakage, strict=True):
            one["share"] = leakage.share
        if self.validation is not None:
            value["validation"]["share"] = self.validation.share
        value["tokens"]["truncated_share"] = self.tokens.truncated_share
        value["tokens"]["dropped_share"] = self.tokens.dropped_share
        value["tokens"]["pieces"]["share"] = self.tokens.pieces.share
        value["classes"]["ratio"] = self.classes.ratio
        value["label_errors"] = self.label_errors.summary() if self.label_errors else None
        return value
