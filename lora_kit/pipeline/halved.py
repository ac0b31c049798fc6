"""Adapters of one recipe on one shared backbone, judged on two halves of the items."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_kit.adapter.attach import attach_saved
from lora_kit.adapter.detach import ModelState, detach, model_state
from lora_kit.data.dataset import open_rows
from lora_kit.evaluation.arms.models import loaded_arms
from lora_kit.evaluation.engine.work import Work, suites_of
from lora_kit.evaluation.halves import Halves, halve
from lora_kit.evaluation.harness import EvaluatedBackbone, EvaluationPlan, run_evaluation
from lora_kit.evaluation.ledger_view import ADAPTER_ARM
from lora_kit.evaluation.reporting.report import ReportFacts
from lora_kit.evaluation.suite import Suite, without_judges
from lora_kit.evaluation.verdict import Verdict
from lora_kit.pipeline.loaded_inputs import LoadedInputs, load_inputs
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runs.open_model import LoadedModel, OpenModel
from lora_kit.runs.session import Session, Subject, open_subject
from lora_kit.runtime.errors import RecipeError
from lora_kit.runtime.hashes import json_sha256
from lora_kit.runtime.out_of_memory import free_memory


@dataclass
class SharedBackbone:
    """Backbone that adapters are attached to one after another, loaded again where one changed it.

    Attributes:
        recipe: recipe whose backbone, rows and items all trials share.
    """

    recipe: Recipe
    _inputs: LoadedInputs | None = field(default=None, init=False)
    _state: ModelState | None = field(default=None, init=False)

    def inputs(self, recipe: Recipe | None = None) -> LoadedInputs:
        """Return backbone, rows and items; the backbone has no adapter.

        Args:
            recipe: recipe that the rows are for, if it may have others than the shared one.
        """
        if self._inputs is None:
            loaded = load_inputs(self.recipe)
            self._inputs = dataclasses.replace(loaded, take_off=self.take_off)
            self._state = model_state(loaded.backbone.model)
        if recipe is None or (recipe.data, recipe.seed) == (self.recipe.data, self.recipe.seed):
            return self._inputs
        sources = open_rows(recipe.data, recipe.seed, recipe.training.objective)
        return dataclasses.replace(self._inputs, sources=sources)

    def take_off(self, model: Any) -> None:
        """Take an adapter off; where that is not possible, the backbone is loaded again."""
        assert self._inputs is not None
        assert self._state is not None
        if not detach(model, self._inputs.backbone, self._state):
            self.forget()
        free_memory()

    def forget(self) -> None:
        """Free the backbone, which an adapter that failed may still be on."""
        self._inputs = self._state = None


@dataclass(frozen=True)
class HalvedItems:
    """Items of a recipe's suites in two halves, and the backbone that answers them.

    Attributes:
        shared: backbone, rows and items.
        suites: suites of the items.
        halves: items on which adapters are compared, and those on which one is proved.
    """

    shared: SharedBackbone
    suites: Sequence[Suite]
    halves: Halves

    @classmethod
    def of(cls, recipe: Recipe) -> HalvedItems:
        """Load the backbone and the items.

        Raises:
            LoraKitError: if something cannot be read, a role has no suite, a task is too small to
                be halved, or another engine is to answer.
        """
        if recipe.evaluation.engine != "transformers":
            raise RecipeError(
                "evaluation.engine: adapters that are compared on halves of the items are answered "
                f"by transformers (got {recipe.evaluation.engine}). Fix: leave it out, and "
                "evaluate the chosen run with --engine"
            )
        shared = SharedBackbone(recipe)
        loaded = shared.inputs()
        work = [one for one in loaded.work if one.task.spec.kind != "judge"]
        suites = without_judges(suites_of(loaded.work), "a judge is not asked about halves")
        _require_both_roles(suites)
        return cls(shared, suites, halve(work, loaded.backbone))

    @property
    def digests(self) -> dict[str, str]:
        """Digests of everything that adapters are trained on and compared by, by name."""
        loaded = self.shared.inputs()
        halves = [(one.name, one.digest) for one in (*self.halves.a, *self.halves.b)]
        return {
            "the backbone": loaded.backbone.fingerprint.digest,
            "the rows of data.train": loaded.sources.digest(),
            "the suites": json_sha256({suite.name: suite.digest for suite in self.suites}),
            "their items": json_sha256(halves),
        }

    def evaluated(
        self, run: RunDirectory, recipe: Recipe, work: Sequence[Work], to: str
    ) -> Verdict:
        """Return the verdict on an adapter as it is on disk.

        Args:
            run: run of the adapter.
            recipe: recipe of the run.
            work: items to ask.
            to: name of the directory of the results, within the run's.
        """
        backbone = self.shared.inputs().backbone
        opened = OpenModel(lambda: LoadedModel(backbone, attach_saved(backbone, run.adapter)))
        subject = open_subject(Session(run, recipe, opened), None)
        verdict = run_evaluation(self._plan(subject, run.root / to), work).verdict
        self.shared.take_off(subject.model)
        subject.close()
        return verdict

    def _plan(self, subject: Subject, directory: Path) -> EvaluationPlan:
        return EvaluationPlan(
            EvaluatedBackbone.of(subject.backbone),
            subject.adapter,
            self.suites,
            loaded_arms(subject, ["base", ADAPTER_ARM]),
            directory,
            ReportFacts.dated(subject.title, {**subject.facts, "Items": directory.name}),
        )


def _require_both_roles(suites: Sequence[Suite]) -> None:
    for role in ("gain", "retention"):
        if not any(suite.role == role for suite in suites):
            named = ", ".join(f"{suite.name} ({suite.role})" for suite in suites) or "none"
            raise RecipeError(
                "evaluation.suites: adapters are chosen by gain and retention, and no suite has "
                f"the role {role} (got {named}). Fix: name suites of both roles in the recipe"
            )
