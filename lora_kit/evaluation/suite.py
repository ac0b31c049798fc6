"""A suite: a named set of tasks with a role, declared in YAML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lora_kit.recipe.bundled import bundled_names, find_document
from lora_kit.recipe.document import read_document
from lora_kit.recipe.load import validate
from lora_kit.recipe.section import Count, Fraction, Positive, Section, Whole
from lora_kit.runtime.errors import RecipeError
from lora_kit.runtime.hashes import json_sha256

# In a wheel, and in a checkout.
SUITE_FOLDERS = ("suites", "eval/suites")

Role = Literal["gain", "retention"]
Kind = Literal["loss", "multiple_choice", "classification", "generation", "instructions", "lm_eval"]
Score = Literal["accuracy", "accuracy_per_byte", "accuracy_per_token", "loss", "macro_f1"]
CHOOSING = ("multiple_choice", "classification")
QUESTION = "Question: {question}\nAnswer:"
TEXT = "{text}\nLabel:"
# What a template names.
FIELD = r"\{(\w+)\}"


class TaskSpec(Section):
    """Items and how they are scored."""

    name: str
    """Names the task in the ledger."""
    kind: Kind
    """`loss`: nats per token of the reference, lower is better. `multiple_choice`: share right.
    `classification`: the same, over labels. `generation`: a metric of the generated text.
    `instructions`: share of prompts followed. `lm_eval`: a task of lm-evaluation-harness."""
    source: str
    """A built-in source, a file (`.jsonl`, `.json`, `.csv`, `.parquet`), a directory that
    `datasets` saved, a hub id (`owner/name`); for `lm_eval` the name or the YAML of a task."""
    subset: str | None = None
    """Of a hub id: which of its configurations."""
    revision: str | None = None
    """Of a hub id: commit, tag or branch."""
    split: str = "test"
    """Part of a source that has parts."""
    columns: dict[str, str] = Field(default_factory=dict)
    """What the source calls the fields that the kind wants, such as `question: ctx`."""
    template: str | None = None
    """Multiple choice and classification: the prompt, fields in braces; a classifier's head reads
    the text alone."""
    chat: bool = False
    """Multiple choice and classification: whether the prompt is a user's turn and the choice the
    assistant's, as in training on conversations."""
    labels: list[str] = Field(default_factory=list)
    """Classification: all labels; by default those that occur."""
    score: Score | None = None
    """Multiple choice and classification: `accuracy` (default) by the likelihood of the choice,
    `accuracy_per_byte` or `accuracy_per_token` by its likelihood over its length, `loss` of the
    right choice (nats), `macro_f1` (classification)."""
    limit: Count | None = None
    """At most this many items, the same ones each time."""
    shots: Whole = 0
    """Solved examples before each item: items of the source that are not evaluated."""
    cluster: str | None = None
    """Field whose value items share that are not independent."""
    slices: list[str] = Field(default_factory=list)
    """Fields by whose values the result is told apart, besides those of a built-in source."""
    margin: Positive | None = None
    """Retention only: the largest loss of quality that is tolerated, in the unit of the score."""
    rationale: str = ""
    """Retention only: why this margin."""
    effect: Positive | None = None
    """Gain only: the gain that you hope for; `plan` says how many items would show it."""
    expected_flips: Annotated[Fraction, Field(gt=0)] = 0.1
    """Scores of 0 and 1: share of items that change, for `plan`."""
    expected_deviation: Positive | None = None
    """Other scores: standard deviation of an item's difference, for `plan`."""
    metric: str | None = None
    """Generation: a bundled metric (`chrf`, `exact_match`), the path of an `evaluate` module of
    yours, or `hub:NAME`, which fetches and runs one. Of `lm_eval`, one of the task's own metrics;
    by default its first."""
    lower_is_better: bool = False
    """Generation, `lm_eval`: whether a lower value of the metric is better, as for error rates."""
    scored_text: Literal["whole", "first_line"] = "whole"
    """Generation only: what of the output is the answer that the metric sees."""
    max_length: Count = 1024
    """Tokens of an item or a prompt; longer ones are cut or refused."""
    max_new_tokens: Count = 48
    """Generation and instructions: tokens that are generated at most."""

    @model_validator(mode="after")
    def _metric_where_generated(self) -> TaskSpec:
        if self.kind == "generation" and self.metric is None:
            raise ValueError("a generation task takes a `metric`")
        if self.kind not in ("generation", "lm_eval") and self.metric is not None:
            raise ValueError(f"a {self.kind} task takes no `metric`")
        if self.kind not in ("generation", "lm_eval") and self.lower_is_better:
            raise ValueError(f"a {self.kind} task takes no `lower_is_better`")
        if self.kind != "generation" and self.scored_text != "whole":
            raise ValueError(f"a {self.kind} task takes no `scored_text`")
        return self

    @model_validator(mode="after")
    def _choices_where_chosen(self) -> TaskSpec:
        if self.kind not in CHOOSING and (self.score or self.template or self.chat):
            raise ValueError(f"a {self.kind} task takes none of `score`, `template` and `chat`")
        if self.kind != "classification" and (self.labels or self.score == "macro_f1"):
            raise ValueError(f"a {self.kind} task takes neither `labels` nor `score: macro_f1`")
        if self.labels and len(set(self.labels)) < max(len(self.labels), 2):
            raise ValueError("`labels` names two labels at least, none twice")
        return self

    @model_validator(mode="after")
    def _shares_below_one(self) -> TaskSpec:
        for name in ("margin", "effect"):
            value = getattr(self, name)
            if self.is_binary and value is not None and value >= 1:
                raise ValueError(f"`{name}` is a share of the items: 0.05 is five points")
        return self

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score is a better one."""
        return self.kind != "loss" and self.score != "loss" and not self.lower_is_better

    @property
    def is_binary(self) -> bool:
        """Whether an item's score is 0 or 1."""
        return self.kind == "instructions" or (self.kind in CHOOSING and self.score != "loss")

    @property
    def unit(self) -> str:
        """What a score is measured in."""
        if self.kind == "loss":
            return "nats/token"
        if self.score == "loss":
            return "nats"
        if self.score == "macro_f1":
            return "macro-F1"
        if self.kind == "instructions":
            return "followed"
        return "accuracy" if self.kind in CHOOSING else self.metric or "score"


class Suite(Section):
    """Tasks that are judged together."""

    name: str
    """Names the suite in the ledger."""
    role: Role
    """`gain`: the adapter has to be better. `retention`: it must not be worse than the margin."""
    description: str = ""
    """What it is for."""
    alpha: Annotated[Positive, Field(lt=0.5)] = 0.05
    """Two-sided for gain, one-sided for retention."""
    seed: int = 0
    """Picks the items where a task has a limit."""
    tasks: list[TaskSpec] = Field(min_length=1)

    @field_validator("tasks")
    @classmethod
    def _names_differ(cls, tasks: list[TaskSpec]) -> list[TaskSpec]:
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise ValueError("two tasks have the same name")
        return tasks

    @model_validator(mode="after")
    def _margins_where_retained(self) -> Suite:
        for task in self.tasks:
            if (self.role == "retention") != (task.margin is not None):
                need = "needs a `margin`" if self.role == "retention" else "takes no `margin`"
                raise ValueError(f"task {task.name}: a {self.role} suite {need}")
        return self

    @property
    def digest(self) -> str:
        """The sha256 of what the suite says."""
        return json_sha256(self.model_dump(mode="json"))

    @classmethod
    def load(cls, reference: str | Path) -> Suite:
        """Read a suite by path or bundled name.

        Raises:
            RecipeError: with all problems at once.
        """
        return validate(cls, read_document(find_document(str(reference), SUITE_FOLDERS, "suite")))


def load_suites(references: Sequence[str]) -> list[Suite]:
    """Read several suites.

    Raises:
        RecipeError: if one is wrong, or two have one name and would be judged as one.
    """
    suites = [Suite.load(reference) for reference in references]
    names = [suite.name for suite in suites]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(f"evaluation.suites: two suites are named {twice[0]}; rename one")
    return suites


def suite_names() -> list[str]:
    """The bundled suites."""
    return bundled_names(SUITE_FOLDERS)
