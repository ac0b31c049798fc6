"""Suites: named sets of tasks with a role, declared in YAML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.recipe.bundled import find_document
from lora_kit.recipe.document import read_document
from lora_kit.recipe.load import validate
from lora_kit.recipe.section import Positive, Section, Whole
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import RecipeError
from lora_kit.runtime.hashes import json_sha256

# Folders of the bundled suites: in a wheel, and in a checkout.
SUITE_FOLDERS = ("suites", "eval/suites")

SuiteRole = Literal["gain", "retention"]
# Fields of a task that verdicts of earlier versions know nothing of.
ADDED_FIELDS = ("samples", "temperature", "top_p", "judge", "in_verdict")


class Suite(Section):
    """Suite: tasks that are judged together."""

    name: str
    """Name of the suite in the ledger and the report."""
    role: SuiteRole
    """`gain`: the adapter has to be better than the base. `retention`: the adapter must not be
    worse than the base by the margin or more."""
    description: str = ""
    """Purpose of the suite, shown in the report."""
    alpha: Annotated[Positive, Field(lt=0.5)] = 0.05
    """Significance level of a task: two-sided for gain, one-sided for retention."""
    seed: Whole = 0
    """Random seed that picks the items of a task with a `limit`, and the shots."""
    tasks: list[TaskSpec] = Field(min_length=1)
    """Tasks, all of which have to pass."""

    @field_validator("tasks")
    @classmethod
    def _some_decide(cls, tasks: list[TaskSpec]) -> list[TaskSpec]:
        if not any(task.in_verdict for task in tasks):
            raise ValueError(
                "no task is a part of the verdict. Fix: add a task that is, or name the suite's "
                "tasks in another one"
            )
        return tasks

    @field_validator("tasks")
    @classmethod
    def _names_differ(cls, tasks: list[TaskSpec]) -> list[TaskSpec]:
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise ValueError("two tasks have the same name. Fix: rename one")
        return tasks

    @model_validator(mode="after")
    def _margins_where_retained(self) -> Suite:
        for task in self.tasks:
            if self.role == "retention" and task.margin is None:
                raise ValueError(
                    f"task {task.name}: a retention suite needs a `margin`. Fix: add the largest "
                    "loss that you tolerate"
                )
            if self.role == "gain" and task.margin is not None:
                raise ValueError(
                    f"task {task.name}: a gain suite takes no `margin`. Fix: remove it, or use "
                    "`role: retention`"
                )
        return self

    @property
    def in_verdict(self) -> Suite:
        """The suite without the tasks that stand beside the verdict."""
        return self.model_copy(update={"tasks": [task for task in self.tasks if task.in_verdict]})

    @property
    def digest(self) -> str:
        """SHA-256 of the suite's fields, defaults included.

        Fields that earlier versions did not have count only where they are set, so that the
        digests of these versions stay.
        """
        content = self.model_dump(mode="json")
        for written, task in zip(content["tasks"], self.tasks, strict=True):
            if task.judge is not None:
                written["judge"] = task.judge.measured.model_dump(mode="json")
            for name in ADDED_FIELDS:
                if getattr(task, name) == TaskSpec.model_fields[name].default:
                    del written[name]
        return json_sha256(content)

    @classmethod
    def load(cls, reference: str | Path) -> Suite:
        """Read a suite by path or bundled name.

        Raises:
            RecipeError: if the suite is invalid; names all problems at once.
        """
        document = read_document(find_document(str(reference), SUITE_FOLDERS, "suite"))
        suite = validate(cls, document)
        for task in suite.tasks:
            if task.judge is not None and task.judge.accuracy is not None:
                raise RecipeError(
                    f"{document.origin}: task {task.name}: judge.accuracy: is measured, not given "
                    f"(got {task.judge.accuracy.sensitivity:g}). Fix: remove it, and name labelled "
                    "pairs with `judge.calibration`"
                )
        return suite


def without_judges(suites: Sequence[Suite], why: str) -> list[Suite]:
    """Return suites without their judge tasks, whose names are shown.

    Args:
        suites: the suites; one of judge tasks alone is left out.
        why: reason, which ends the message.
    """
    kept = []
    for suite in suites:
        tasks = [task for task in suite.tasks if task.kind != "judge"]
        left = [task.name for task in suite.tasks if task.kind == "judge"]
        if left:
            say(f"{suite.name}: {', '.join(left)} left out: {why}")
        if tasks:
            kept.append(suite.model_copy(update={"tasks": tasks}))
    return kept


def load_suites(references: Sequence[str]) -> list[Suite]:
    """Read several suites.

    Raises:
        RecipeError: if a suite is invalid, or two suites have the same name.
    """
    suites = [Suite.load(reference) for reference in references]
    names = [suite.name for suite in suites]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(
            f"evaluation.suites: two suites have the same name (got {twice[0]}). Fix: rename one"
        )
    return suites
