"""Tasks of a suite: where the items come from, and how they are scored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lora_kit.evaluation.judge_spec import JudgeSpec
from lora_kit.evaluation.scores import SCORES, Score, ScoreName, TaskKind, item_score
from lora_kit.recipe.section import Count, Fraction, Positive, Section, Whole

CHOICE_KINDS = ("multiple_choice", "classification")
QUESTION_TEMPLATE = "Question: {question}\nAnswer:"
LABEL_TEMPLATE = "{text}\nLabel:"
# Reference to a field of the row in a template.
TEMPLATE_FIELD = r"\{(\w+)\}"


class TaskSpec(Section):
    """Task: items and their scoring."""

    name: str
    """Name of the task in the ledger and the report."""
    kind: TaskKind
    """Score of an item. `loss`: nats per token of the reference, lower is better; a masked
    language model has each token masked in turn.
    `multiple_choice`: accuracy. `classification`: accuracy over labels. `regression`: error of the
    numbers, `multi_label`: right labels, and `token_classification`: right entities, that a head
    gives. `retrieval`: ranks of the right documents of a query among all documents of the source,
    and `similarity`: order of pairs of texts, by vectors of an embedding. `generation`: a metric of
    the generated text. `instructions`: share of prompts followed. `judge`: share of prompts on
    which a model prefers the generated text to that of the base, ties half. `lm_eval`: a task of
    lm-evaluation-harness."""
    source: str
    """Built-in source, file (`.jsonl`, `.json`, `.csv`, `.parquet`), directory saved by `datasets`
    or hub id (`owner/name`); for `lm_eval` the name or the YAML file of a task."""
    subset: str | None = None
    """Configuration of a hub id, or part of a built-in source of instructions."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    split: str = "test"
    """Split of the source, if it has several."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Columns of the source by the field that the kind needs, such as `question: ctx`."""
    template: str | None = None
    """Multiple choice and classification: prompt, with fields of the row in braces. A classifier's
    head reads the text alone."""
    chat: bool = False
    """Multiple choice and classification: apply the chat template, with the prompt as the user's
    turn and the choice as the assistant's, as in training on conversations."""
    labels: list[str] = Field(default_factory=list)
    """Classification: all labels. Default: the labels that occur in the source."""
    score: ScoreName | None = None
    """Multiple choice and classification: `accuracy` (default) by the likelihood of the choice,
    `accuracy_per_byte` or `accuracy_per_token` by its likelihood divided by its length, `loss` of
    the correct choice (nats); for classification also `macro_f1` and `mean_average_precision`, of
    each class against all others. Regression: `squared_error` (default),
    divided by the variance of the task's numbers, so that its mean is 1 - R2; `r2`, `rmse`,
    `spearman`. Multi-label: `jaccard` (default), the share of right labels among those that are
    right or predicted; `exact_match`; `loss`, mean of the labels (nats); `micro_f1`, `macro_f1`,
    `mean_average_precision`. Token classification: `entity_f1` (default), of entities with the
    right type and boundaries; `relaxed_entity_f1`, with the right type and a word in common;
    `jaccard`, the share of right entities among those that are right or predicted; `exact_match` of
    all entities; `accuracy` of words; `loss` (nats per word). Retrieval: `ndcg` (default), of the
    first ten documents, `recall_at_1`, `recall_at_10`, `reciprocal_rank`. Similarity: `spearman`
    (default); `squared_error` between the cosine and the score, from 0 to 1 over the task."""
    limit: Count | None = None
    """Largest number of items; `seed` of the suite picks them. Default: all."""
    shots: Whole = 0
    """Solved examples before each item, taken from items of the source that are not evaluated."""
    cluster: str | None = None
    """Field whose value is shared by items that are not independent, such as a document."""
    slices: list[str] = Field(default_factory=list)
    """Fields by whose values the result is broken down. Built-in sources bring their own."""
    margin: Positive | None = None
    """Retention only: largest tolerated loss, in the unit of the score."""
    rationale: str = ""
    """Retention only: reason for the margin."""
    effect: Positive | None = None
    """Gain only: expected gain, in the unit of the score; `plan` computes the number of items that
    would detect it."""
    expected_flips: Annotated[Fraction, Field(gt=0)] = 0.1
    """Scores of 0 and 1: share of items whose score changes, for the computations of `plan`."""
    expected_deviation: Positive | None = None
    """Other scores of items: standard deviation of the difference of an item, for the computations
    of `plan`."""
    metric: str | None = None
    """Generation: bundled metric (`chrf`, `exact_match`), path of an `evaluate` module, or
    `hub:NAME`, which downloads and runs one. For `lm_eval`, a metric of the task; default: its
    first."""
    lower_is_better: bool = False
    """Generation and `lm_eval`: a lower value of the metric is better, as for error rates."""
    scored_text: Literal["whole", "first_line"] = "whole"
    """Generation only: part of the output that the metric scores."""
    max_length: Count = 1024
    """Largest length of an item or a prompt, in tokens; longer ones are truncated or refused."""
    max_new_tokens: Count = 48
    """Generation, instructions and judge: largest number of generated tokens."""
    samples: Count = 1
    """Generation and instructions: answers to an item. With several, or with a `temperature`, they
    are sampled; the score of an item is the mean of theirs, and `pass@k` the share of items with a
    right one among the k."""
    temperature: Positive | None = None
    """Sampling temperature; default 1 with several `samples`, else the most likely token."""
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    """Sampling: share of the probability that tokens are drawn from, the most likely ones first."""

    judge: JudgeSpec | None = None
    """Judge: model that compares each arm's answers with those of the base."""
    in_verdict: bool = True
    """Judge: `false` shows the result beside the verdict, which a judge without `calibration` has
    no part in."""

    @model_validator(mode="after")
    def _judged_where_calibrated(self) -> TaskSpec:
        if (self.kind == "judge") != (self.judge is not None):
            fix = "remove it" if self.judge else "add one with a `model` or a server's `url`"
            needs = "takes no" if self.judge else "needs a"
            raise ValueError(f"a {self.kind} task {needs} `judge`. Fix: {fix}")
        if self.judge is None and not self.in_verdict:
            raise ValueError(
                f"a {self.kind} task is always a part of the verdict. Fix: remove `in_verdict`"
            )
        if self.judge is not None and self.in_verdict and self.judge.calibration is None:
            raise ValueError(
                "a judge that is not calibrated has no part in the verdict. Fix: name labelled "
                "pairs with `judge.calibration`, or set `in_verdict: false` to show its result "
                "beside the verdict"
            )
        if self.judge is not None and max(self.margin or 0, self.effect or 0) >= 0.5:
            raise ValueError(
                "`margin` and `effect` of a judge are shares of the items from 0.5, at which both "
                "are equally good, and below 0.5. Fix: lower it"
            )
        return self

    @model_validator(mode="after")
    def _metric_where_generated(self) -> TaskSpec:
        if self.kind == "generation" and self.metric is None:
            raise ValueError(
                "a generation task takes a `metric`. Fix: add one, such as `metric: chrf`"
            )
        if self.kind not in ("generation", "lm_eval") and self.metric is not None:
            raise ValueError(f"a {self.kind} task takes no `metric`. Fix: remove it")
        if self.kind not in ("generation", "lm_eval") and self.lower_is_better:
            raise ValueError(f"a {self.kind} task takes no `lower_is_better`. Fix: remove it")
        if self.kind != "generation" and self.scored_text != "whole":
            raise ValueError(f"a {self.kind} task takes no `scored_text`. Fix: remove it")
        return self

    @model_validator(mode="after")
    def _choices_where_chosen(self) -> TaskSpec:
        if self.kind not in CHOICE_KINDS and (self.template or self.chat):
            raise ValueError(
                f"a {self.kind} task takes neither `template` nor `chat`. Fix: remove them"
            )
        possible = SCORES.get(self.kind, {})
        if self.score is not None and self.score not in possible:
            fix = f"use {' or '.join(possible)}" if possible else "remove it"
            raise ValueError(f"a {self.kind} task has no `score: {self.score}`. Fix: {fix}")
        if self.kind != "classification" and self.labels:
            raise ValueError(
                f"a {self.kind} task takes no `labels`. Fix: remove them, or use `kind: "
                "classification`"
            )
        if self.labels and len(set(self.labels)) < max(len(self.labels), 2):
            raise ValueError(
                "`labels` needs at least two labels, none twice. Fix: list each label once"
            )
        return self

    @model_validator(mode="after")
    def _sampled_where_generated(self) -> TaskSpec:
        if self.is_sampled and self.kind not in ("generation", "instructions"):
            raise ValueError(
                f"a {self.kind} task takes neither `samples` nor `temperature`. Fix: remove them"
            )
        if self.top_p < 1 and not self.is_sampled:
            raise ValueError(
                "`top_p` has no effect on the most likely token. Fix: set `samples` or "
                "`temperature`, or remove it"
            )
        return self

    @model_validator(mode="after")
    def _shares_below_one(self) -> TaskSpec:
        for name in ("margin", "effect"):
            value = getattr(self, name)
            if self.is_binary and value is not None and value >= 1:
                raise ValueError(
                    f"`{name}` is a share of the items and below 1. Fix: write {value / 100:g} for "
                    f"{value:g} points"
                )
        return self

    @property
    def prompt_template(self) -> str:
        """Template of the prompt: `template`, or the default of the kind."""
        default = QUESTION_TEMPLATE if self.kind == "multiple_choice" else LABEL_TEMPLATE
        return self.template or default

    @property
    def score_name(self) -> ScoreName | None:
        """Name of the score; `None` for a kind with a single one."""
        return self.score or next(iter(SCORES.get(self.kind, {})), None)

    @property
    def chosen_score(self) -> Score | None:
        """Score of the task; `None` for a kind with a single one."""
        return None if self.score_name is None else SCORES[self.kind][self.score_name]

    @property
    def of_all_items(self) -> bool:
        """True if the score is defined for all items together only."""
        return self.chosen_score is not None and not self.chosen_score.of_items

    @property
    def item_score(self) -> ScoreName | None:
        """Name of the score of single items; `None` for a kind with a single one."""
        return item_score(self.kind) if self.of_all_items else self.score_name

    def by_item(self) -> TaskSpec:
        """Return the task with the score of single items, which has a mean over items."""
        return self.model_copy(update={"score": self.item_score}) if self.of_all_items else self

    @property
    def higher_is_better(self) -> bool:
        """True if a higher score is better."""
        if self.chosen_score is not None:
            return self.chosen_score.higher_is_better
        return self.kind != "loss" and not self.lower_is_better

    @property
    def is_binary(self) -> bool:
        """True if the score of an item is always 0 or 1."""
        if self.samples > 1:
            return False
        name = self.item_score
        return self.kind == "instructions" or (
            name is not None and SCORES[self.kind][name].is_binary
        )

    @property
    def is_sampled(self) -> bool:
        """True if answers are sampled."""
        return self.samples > 1 or self.temperature is not None

    @property
    def is_graded(self) -> bool:
        """True if the score of an item is known to have many values; that of most metrics is not.

        A generation task's metric is known by its scores only, but for the bundled `chrf`.
        """
        has_many = self.kind in ("loss", "regression", "similarity") or self.score == "loss"
        return has_many or self.metric == "chrf"

    @property
    def unit(self) -> str:
        """Unit of a score."""
        if self.kind == "loss":
            return "nats/token"
        if self.chosen_score is not None:
            return self.chosen_score.unit
        if self.kind in ("instructions", "judge"):
            return "followed" if self.kind == "instructions" else "preferred"
        return self.metric or "score"
