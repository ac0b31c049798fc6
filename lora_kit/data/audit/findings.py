"""What an audit finds: counts, shares and the places of a few examples, never the texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# Places that a finding names.
EXAMPLES = 5


@dataclass(frozen=True)
class Twin:
    """A row that says what an earlier row says.

    Attributes:
        similarity: 1 if nothing but case and white space differs, else the estimated Jaccard
            similarity of their runs of words.
    """

    origin: str
    earlier: str
    similarity: float


@dataclass(frozen=True)
class Duplicates:
    """Rows that stand there before.

    Attributes:
        exact: rows that an earlier one equals but for case and white space.
        near: other rows that share at least 0.8 of their runs of words with an earlier one.
    """

    rows: int
    exact: int
    near: int
    examples: tuple[Twin, ...] = ()

    @property
    def share(self) -> float:
        """Of the rows that are exact duplicates."""
        return self.exact / max(self.rows, 1)


@dataclass(frozen=True)
class Leak:
    """An item and the training row that it stands in.

    Attributes:
        kind: `exact`; `near`, at least 0.7 of it; `prompt`: without its answer.
        coverage: share of the item's runs of words that the row holds.
    """

    item: str
    origin: str
    kind: str
    coverage: float


@dataclass(frozen=True)
class Leakage:
    """Items of one task that stand in a training row.

    Attributes:
        exact: items whose prompt and answer stand there word for word.
        near: other items of whose prompt and answer at least 0.7 stand there.
        prompts: other items whose prompt stands there with no or another answer.
        unchecked: items without a word to look for.
        examples: leaks first, then prompts.
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
        """Items whose prompt and answer stand in a training row."""
        return self.exact + self.near

    @property
    def share(self) -> float:
        """Of the items that leaked."""
        return self.leaked / max(self.items, 1)


@dataclass(frozen=True)
class Lengths:
    """Tokens of the examples.

    Attributes:
        histogram: (longest, examples) of each bucket, in order; a bucket begins behind the last.
    """

    p50: int
    p90: int
    p99: int
    longest: int
    histogram: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Pieces:
    """Supervised tokens that are no text by themselves, but bytes of a character.

    Attributes:
        supervised: tokens that are learned.
        broken: of these, parts of a character.
        scripts: where they come from: tokens by script, such as `DEVANAGARI`, or `symbols`.
        examples: origins of the first rows.
    """

    supervised: int
    broken: int
    scripts: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Of the supervised tokens that are parts of a character."""
        return self.broken / max(self.supervised, 1)


@dataclass(frozen=True)
class Tokens:
    """What became of the rows as tokens.

    Attributes:
        rows: that went in.
        examples: that were looked at.
        truncated: examples that were cut.
        dropped: rows that no token is learned of.
    """

    rows: int
    examples: int
    truncated: int
    dropped: int
    lengths: Lengths
    pieces: Pieces
    truncated_examples: tuple[str, ...] = ()
    dropped_examples: tuple[str, ...] = ()

    @property
    def truncated_share(self) -> float:
        """Of the rows that were cut."""
        return self.truncated / max(self.rows, 1)

    @property
    def dropped_share(self) -> float:
        """Of the rows that are of no use."""
        return self.dropped / max(self.rows, 1)


@dataclass(frozen=True)
class Classes:
    """Rows of each label; empty where rows have none."""

    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Rows of the smallest class over those of the largest; 1 without classes."""
        return min(self.counts.values()) / max(self.counts.values()) if self.counts else 1.0


@dataclass(frozen=True)
class Shift:
    """How well a classifier tells training rows from others.

    Attributes:
        other: what they are compared with: `data.validation`, or a suite.
        rows: training rows that were compared.
        others: of the others.
        auc: area under the ROC curve: 0.5 by chance, 1 for a classifier that is never wrong.
        low: of its 95% interval.
        high: of the same.
        p_value: one-sided, of an area this large by chance.
    """

    other: str
    rows: int
    others: int
    auc: float
    low: float
    high: float
    p_value: float

    @property
    def found(self) -> bool:
        """Whether the classifier is better than chance."""
        return self.low > 0.5 and self.p_value < 0.05


@dataclass(frozen=True)
class Audit:
    """All that was found.

    Attributes:
        leakage: one a task.
        validation: the same of the held-out rows; `None` without any.
        shifts: against the held-out rows and each gain suite, where both are large enough.
        problems: what is past a limit of `data.audit`, in words; empty where nothing is.
        warnings: what is probably not meant, in words.
        seconds: that it took.
    """

    duplicates: Duplicates
    leakage: tuple[Leakage, ...]
    validation: Leakage | None
    tokens: Tokens
    classes: Classes
    shifts: tuple[Shift, ...]
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON, the shares with the counts."""
        value = asdict(self)
        value["duplicates"]["share"] = self.duplicates.share
        for one, found in zip(value["leakage"], self.leakage, strict=True):
            one["share"] = found.share
        if self.validation is not None:
            value["validation"]["share"] = self.validation.share
        value["tokens"]["truncated_share"] = self.tokens.truncated_share
        value["tokens"]["dropped_share"] = self.tokens.dropped_share
        value["tokens"]["pieces"]["share"] = self.tokens.pieces.share
        value["classes"]["ratio"] = self.classes.ratio
        return value
