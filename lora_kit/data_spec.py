"""The recipe's `data` section: sources, mixture, what is learned of a row, what is too much."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lora_kit.schema import Count, Fraction, Positive, Section, Share

Role = Literal["system", "user", "assistant", "tool"]
RowFormat = Literal[
    "auto",
    "messages",
    "prompt-completion",
    "text",
    "alpaca",
    "sharegpt",
    "preference",
    "text-label",
]
LicenseName = Annotated[str, Field(min_length=1, max_length=200)]


# Of replay: rows of the base's own.
SELF = "self"


class SourceSpec(Section):
    """Rows from one place."""

    source: str
    """A built-in source, a file (.jsonl, .json, .csv, .tsv, .parquet; also with .gz, .bz2 or .zst
    behind it), a folder of such files (those in folders below it too) or one that `datasets`
    saved, or a hub id (owner/name)."""
    split: str = "train"
    """Part of a built-in source (train, validation, test, all), a saved data set or a hub id."""
    subset: str | None = None
    """Of a hub id: its configuration."""
    revision: str | None = None
    """Of a hub id: commit, tag or branch."""
    streaming: bool = False
    """Of a hub id: fetch row by row what `limit` asks for, instead of the whole first."""
    format: RowFormat = "auto"
    """How a row is read; `auto` tells it by the columns."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Which column a field of the format is in: `{prompt: question, completion: answer}`."""
    weight: Positive | None = None
    """Share of the mixture, in proportion to the other sources' weights: all or none has one."""
    limit: Count | None = None
    """At most this many rows, chosen by the recipe's seed."""
    license: LicenseName | None = None
    """Licence of the rows, an SPDX id (`CC-BY-4.0`) or a text, for the release's card; the built-in
    sources know theirs."""


class ReplaySpec(Section):
    """Rows of another kind, mixed in so that the backbone keeps what it knew."""

    source: str
    """As in `data.train`; or `self`: rows that the base makes before the training."""
    split: str = "train"
    """As in `data.train`."""
    fraction: Fraction = 0.05
    """Share of all training rows that is replay."""
    license: LicenseName | None = None
    """As in `data.train`."""


class AuditSpec(Section):
    """How much of what is wrong with data is still let through; past it, the data is refused."""

    duplicates: Share = 0.5
    """Share of the training rows that stand there before."""
    leakage: Share = 0.0
    """Share of any evaluation task's items whose prompt and answer stand in a training row."""
    truncated: Share = 0.25
    """Share of the rows that are cut at `max_length`."""
    dropped: Share = 0.1
    """Share of the rows that are dropped, for nothing is left to learn from."""


class DataSpec(Section):
    """What is trained on."""

    train: list[SourceSpec] = Field(min_length=1)
    """The sources, one after the other; with weights or a temperature, a mixture of them."""
    temperature: Positive | None = None
    """Sources are drawn in proportion to rows^(1/temperature): 1 as they are, large all alike."""
    rows: Count | None = None
    """Rows of a mixture with weights or temperature; by default as many as the sources have."""
    validation: list[SourceSpec] = Field(default_factory=list)
    """Held out; its loss is measured before and after training."""
    replay: ReplaySpec | None = None
    """Rows mixed in against forgetting."""
    labels: Literal["assistant", "last", "completion", "all"] | list[Role] = "assistant"
    """What is learned of a conversation: every `assistant` turn, the `last` one, what a row gives
    as `completion`, `all` of it (any turn may be the last then), or the turns of a list of
    roles."""
    max_length: Count = 1024
    """Tokens an example; longer ones are cut at the end, counted and reported."""
    documents: Literal["cut", "split"] = "cut"
    """What becomes of texts (not of conversations) that are longer: `cut` like all others, or
    `split` into examples of that length, in which each token is learned once, the token that ends a
    text behind the last."""
    packing: bool = False
    """Fill rows of max_length tokens with several examples that do not see one another: faster
    where attention skips what is masked (flash attention), slower on a CPU."""
    audit: AuditSpec = AuditSpec()
    """What of it is too much."""

    @model_validator(mode="after")
    def _one_kind_of_mixture(self) -> DataSpec:
        weighted = sum(source.weight is not None for source in self.train)
        if 0 < weighted < len(self.train):
            raise ValueError(f"{weighted} of {len(self.train)} sources have a weight; all or none")
        if weighted and self.temperature is not None:
            raise ValueError("weights and a temperature exclude one another")
        if self.temperature is not None and len(self.train) == 1 and self.rows is None:
            raise ValueError("temperature: mixes several sources, and there is one; leave it out")
        if self.rows is not None and not weighted and self.temperature is None:
            raise ValueError("rows is the size of a mixture; give the sources weights, or limits")
        return self
