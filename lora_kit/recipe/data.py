"""The recipe's `data` section: sources, mixture, which tokens are trained on, audit limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lora_kit.recipe.augmentation import AugmentationSpec
from lora_kit.recipe.section import Count, Fraction, LicenseName, Positive, Section, Share

TurnRole = Literal["system", "user", "assistant", "tool"]
TrainOn = Literal["assistant", "last", "completion", "all"] | list[TurnRole]
RowFormat = Literal[
    "auto",
    "messages",
    "prompt-completion",
    "text",
    "alpaca",
    "sharegpt",
    "preference",
    "text-label",
    "text-score",
    "text-scores",
    "text-labels",
    "tokens-tags",
    "pair",
    "triplet",
]
Packing = bool | Literal["unpadded"]

LabelErrorAction = Literal["none", "show", "weigh_down", "drop"]
LabelErrorFolds = Literal["clusters", "rows"]

# Fields that add rows of a head, or weigh them; the arm `plain` is trained without them.
CHANGES = ("unlabeled", "reweight", "augmentation")
# The replay source of rows that the base generates.
SELF = "self"


class SourceSpec(Section):
    """Rows from one place."""

    source: str
    """A built-in source, a file (.jsonl, .json, .csv, .tsv, .parquet; also compressed as .gz, .bz2
    or .zst), a folder of such files, a folder that `datasets` saved, or a hub id (owner/name)."""
    split: str = "train"
    """Split of a built-in source (train, validation, test, all), a saved data set or a hub id."""
    subset: str | None = None
    """Configuration of a hub id."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    streaming: bool = False
    """Fetch only the rows that `limit` asks for from a hub id, instead of the whole data set."""
    format: RowFormat = "auto"
    """Row format; `auto` recognises it by the columns."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column of each field of the format: `{prompt: question, completion: answer}`."""
    weight: Positive | None = None
    """Share of the mixture, relative to the weights of the other sources. Set it for all or
    none."""
    limit: Count | None = None
    """Largest number of rows, chosen by the recipe's seed."""
    license: LicenseName | None = None
    """Licence of the rows for the release's card, as an SPDX id (`CC-BY-4.0`) or a text. Built-in
    sources have their own."""


class ReplaySpec(Section):
    """Rows of another kind, mixed in against forgetting."""

    source: str
    """As in `data.train`; or `self`: rows that the base generates before training."""
    split: str = "train"
    """As in `data.train`."""
    fraction: Fraction = 0.05
    """Share of all training rows that is replay."""
    license: LicenseName | None = None
    """As in `data.train`."""


class UnlabeledSpec(Section):
    """Texts without a class, with which a classifier is trained as well (pseudo-labels).

    A linear probe of the frozen base, fitted to the labelled rows, names their class (Lee 2013,
    ICML workshop on challenges in representation learning). The arm `plain` is trained without
    them.
    """

    texts: Annotated[list[SourceSpec], Field(min_length=1)]
    """Sources of the texts, as in `data.train`; labels that they have are not read."""
    precision: Annotated[Share, Field(gt=0)] = 0.9
    """Share of right classes that each class's threshold is chosen for, on labelled rows that the
    probe was not fitted to. A class that does not reach it gets no texts."""
    rounds: Count = 1
    """Times that the texts are labelled: from the second on by a probe that is fitted to the
    pseudo-labelled texts as well."""
    weight: Annotated[Share, Field(gt=0)] = 1.0
    """Weight of such a text in the loss; a labelled row has 1."""


class ReweightSpec(Section):
    """Weights of the training rows by their likeness to the texts of a target domain.

    The weight of a text is the ratio of its density in the target and in the training rows, by a
    classifier of the two on the frozen base's features (Bickel et al. 2007, ICML; Sugiyama et al.
    2007, JMLR 8:985). The arm `plain` is trained without weights.
    """

    target: Annotated[list[SourceSpec], Field(min_length=1)]
    """Sources of texts of the target domain, as in `data.train`; labels are not read."""
    clip: Annotated[float, Field(ge=1)] = 10.0
    """Largest weight, and 1 / `clip` the smallest, before weights are divided by their mean."""


class AuditSpec(Section):
    """Limits of the audit; data that exceeds one is refused."""

    duplicates: Share = 0.5
    """Share of the training rows that repeat an earlier row."""
    leakage: Share = 0.0
    """Share of the items of any evaluation task whose prompt and answer occur in a training row."""
    truncated: Share = 0.25
    """Share of the examples that are truncated at `max_length`."""
    dropped: Share = 0.1
    """Share of the examples that are dropped because no supervised token is left."""
    label_errors: LabelErrorAction = "none"
    """Classification: search for rows whose label looks wrong (confident learning, Northcutt et al.
    2021, arXiv:1911.00068) by a linear probe that was not fitted to them, which takes one forward
    pass per row and the extra `labels`. `show` them; `weigh_down`: their loss is weighed by the
    probability of their label; `drop`: leave them out of the training."""
    label_error_folds: LabelErrorFolds = "clusters"
    """Rows that the probe of a row must not see: those of its cluster and near duplicates
    (`clusters`), or near duplicates alone (`rows`), which finds more if each row was labelled by
    itself, and nothing if the rows of a cluster share their error."""


class DataSpec(Section):
    """Rows that are trained on, and the tokens that get a label."""

    train: list[SourceSpec] = Field(min_length=1)
    """Sources, read one after the other; with weights or a temperature, mixed."""
    temperature: Positive | None = None
    """Mix sources in proportion to rows^(1/temperature): 1 keeps their sizes, large values make
    them equal."""
    rows: Count | None = None
    """Rows of a mixture with weights or temperature. Default: as many as the sources have."""
    validation: list[SourceSpec] = Field(default_factory=list)
    """Held-out rows; their loss is measured before and after training."""
    replay: ReplaySpec | None = None
    """Rows mixed in against forgetting."""
    train_on: TrainOn = "assistant"
    """Turns of a conversation that are supervised: every `assistant` turn, the `last` one, the
    `completion` of a row, `all` of them (then any turn may be the last), or the turns of a list of
    roles. A turn with `loss: false` (`train: false`, `weight: 0`, `masked: true`) is left out."""
    max_length: Count = 1024
    """Tokens of an example; longer ones are truncated at the end, counted and reported."""
    overflow: Literal["truncate", "split"] = "truncate"
    """Texts (not conversations) longer than `max_length`: `truncate` them, or `split` them into
    examples in which each token is trained on once."""
    packing: Packing | None = None
    """Examples in one row that do not attend to one another. `true`: fill rows of `max_length`
    tokens. `unpadded`: the examples of a forward pass, without padding. `false`: pad the rows of a
    forward pass. Default: `unpadded` on a GPU with attention `varlen` or flash attention, which is
    faster than padding there, else `false`."""
    cross_validation: Literal["sources"] | Annotated[Count, Field(ge=2)] | None = None
    """Heads that read a text: folds in which each row is held out once. `run` then trains as many
    adapters and judges the recipe on all rows; rows of a cluster and near duplicates are held out
    together, and each fold gets its share of the classes. `sources`: each source of `train` is a
    fold, which tells how the recipe does on a domain that it did not see."""
    unlabeled: UnlabeledSpec | None = None
    """Classification: texts without a class, trained on with pseudo-labels."""
    reweight: ReweightSpec | None = None
    """Heads that read a text: weights of the rows by their likeness to a target domain."""
    augmentation: AugmentationSpec | None = None
    """Heads that read a text: changed copies of the rows."""
    audit: AuditSpec = AuditSpec()
    """Limits of the audit."""

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the fields that add rows of a head or weigh them."""
        return tuple(name for name in CHANGES if getattr(self, name) is not None)
