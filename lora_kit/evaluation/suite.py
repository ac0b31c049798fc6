"""A suite: a named set of tasks with a role, declared in YAML."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lora_kit.errors import RecipeError
from lora_kit.schema import (
    Count,
    Positive,
    Section,
    bundled_names,
    find_document,
    read_document,
    validate,
)

# In a wheel, and in a checkout.
SUITE_FOLDERS = ("suites", "eval/suites")

Role = Literal["gain", "retention"]
Kind = Literal["loss", "multiple_choice", "generation", "instructions"]


class TaskSpec(Section):
    """Items and how they are scored."""

    name: str
    """Names the task in the ledger."""
    kind: Kind
    """`loss`: nats per token of the reference, lower is better. `multiple_choice`: share right.
    `generation`: a metric of the generated text. `instructions`: share of prompts followed."""
    source: str
    """A built-in source (`stdlib-docstrings`, `python-reference`, `general-knowledge`,
    `instructions`) or a path to a `.jsonl` file."""
    split: Literal["train", "validation", "test", "all"] = "test"
    """Part of a built-in source with splits."""
    limit: Count | None = None
    """At most this many items, the same ones each time."""
    margin: Positive | None = None
    """Retention only: the largest loss of quality that is tolerated, in the unit of the score."""
    why: str = ""
    """Retention only: why this margin."""
    metric: str | None = None
    """Generation only: a bundled metric (`chrf`, `exact_match`) or the path of an `evaluate` module
    of yours, whose result has a number under its own name or `score`."""
    lower_is_better: bool = False
    """Generation only: whether a lower value of the metric is better, as for error rates."""
    answer: Literal["whole", "first_line"] = "whole"
    """Generation only: what of the output is the answer that the metric sees."""
    max_length: Count = 1024
    """Tokens of an item or a prompt; longer ones are cut."""
    max_new_tokens: Count = 48
    """Generation and instructions: tokens that are generated at most."""

    @model_validator(mode="after")
    def _metric_where_generated(self) -> TaskSpec:
        if (self.kind == "generation") != (self.metric is not None):
            raise ValueError(
                f"a {self.kind} task takes {'a' if self.kind == 'generation' else 'no'} `metric`"
            )
        if self.kind != "generation" and (self.answer != "whole" or self.lower_is_better):
            raise ValueError(f"a {self.kind} task takes neither `answer` nor `lower_is_better`")
        return self

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score is a better one."""
        return self.kind != "loss" and not self.lower_is_better

    @property
    def is_binary(self) -> bool:
        """Whether an item's score is 0 or 1."""
        return self.kind in ("multiple_choice", "instructions")

    @property
    def unit(self) -> str:
        """What a score is measured in."""
        if self.kind == "loss":
            return "nats/token"
        if self.is_binary:
            return "accuracy" if self.kind == "multiple_choice" else "followed"
        return str(self.metric)


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
        return hashlib.sha256(
            json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()
        ).hexdigest()

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
