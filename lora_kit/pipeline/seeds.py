"""Recipe -> verdict on the recipe, from several seeds, and the release of one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.evaluation.arms.models import loaded_arms
from lora_kit.evaluation.assembly import LEDGER
from lora_kit.evaluation.harness import EvaluatedBackbone, EvaluationPlan, run_evaluation
from lora_kit.evaluation.ledger import Entry, Ledger
from lora_kit.evaluation.ledger_view import ADAPTER_ARM
from lora_kit.evaluation.reporting.report import ReportFacts
from lora_kit.evaluation.verdict import Verdict
from lora_kit.pipeline.halved import HalvedItems
from lora_kit.pipeline.merging import merge
from lora_kit.pipeline.releasing import release, why_not_released
from lora_kit.pipeline.training import train
from lora_kit.pipeline.trials import best_seed
from lora_kit.recipe.objective import HEADED
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sections import MERGED_ARMS
from lora_kit.runs.directory import HALF_A, HALF_B, RunDirectory
from lora_kit.runs.session import open_run, open_subject
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import VERDICT_STATUS, RecipeError, ReleaseError
from lora_kit.runtime.files import write_json
from lora_kit.runtime.processes import process_state
from lora_kit.selection.seeds import SEEDS, RecipeVerdict, SeedEntries, SeedTask, judge_task


@dataclass(frozen=True)
class SeedsOutcome:
    """Result of a run of several seeds.

    Attributes:
        recipe: verdict on the recipe, on all items.
        shipped: verdict on the chosen adapter and its merged model, on half B.
        run: run directory of the chosen adapter.
        release: release directory; `None` if it was not released.
        refusal: reason why it was not released; empty if it was.
        status: exit status of the command.
    """

    recipe: RecipeVerdict
    shipped: Verdict
    run: Path
    release: Path | None
    refusal: str
    status: int

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "recipe": self.recipe.to_dict(),
            "run": str(self.run),
            "verdict": self.shipped.to_dict(),
            "release": str(self.release) if self.release else None,
            "refusal": self.refusal,
        }


def run_seeds(recipe: Recipe, seeds: int, output: Path | None = None) -> SeedsOutcome:
    """Train and judge a recipe with several seeds, choose one on half A, and release it by half B.

    What exists already is used, after an interruption or with more seeds.

    Args:
        recipe: the recipe; its seed and those after it are used.
        seeds: number of seeds, 2 at least.
        output: directory of the runs; by default `runs/NAME-seeds`.

    Raises:
        LoraKitError: if anything is refused.
    """
    _require_one_language_model(recipe)
    directory = output or Path("runs") / f"{recipe.name}-seeds"
    items = HalvedItems.of(recipe)
    runs, verdicts = [], []
    for seed in range(recipe.seed, recipe.seed + seeds):
        seeded = recipe.model_copy(update={"seed": seed})
        run = RunDirectory(directory / f"seed-{seed}")
        say(f"{run.root}: seed {seed - recipe.seed + 1} of {seeds}")
        # A finished training is not repeated, but has to be that of this recipe, on these rows.
        train(seeded, run.root, resume=True, loaded=items.shared.inputs(seeded)).close()
        verdicts.append(items.evaluated(run, seeded, items.halves.a, HALF_A))
        items.evaluated(run, seeded, items.halves.b, HALF_B)
        runs.append(run)
    best = best_seed(verdicts)
    names = tuple(range(recipe.seed, recipe.seed + seeds))
    found = RecipeVerdict(names, _judged(items, runs), names[best], directory)
    write_json(directory / SEEDS, found.to_dict())
    say(f"{directory}: seed {names[best]} ships, chosen on half A")
    return _shipped(items, found, runs[best])


def _require_one_language_model(recipe: Recipe) -> None:
    if recipe.training.objective in HEADED:
        raise RecipeError(
            "training.objective: several seeds are judged by gain and retention, which a head has "
            f"none of (got {recipe.training.objective}). Fix: run without --seeds"
        )
    processes = process_state().num_processes
    if processes > 1:
        raise RecipeError(
            f"--seeds: one process trains the seeds (got {processes} processes). Fix: start "
            "without a launcher"
        )


def _judged(items: HalvedItems, runs: Sequence[RunDirectory]) -> tuple[SeedTask, ...]:
    ledgers = [[Ledger(run.root / half / LEDGER) for half in (HALF_A, HALF_B)] for run in runs]
    return tuple(
        judge_task(suite, task, [_entries(one, suite.name, task.name) for one in ledgers])
        for suite in items.suites
        for task in suite.tasks
    )


def _entries(halves: Sequence[Ledger], suite: str, task: str) -> SeedEntries:
    """Return the entries of base and adapter on both halves."""
    found: dict[str, dict[str, Entry]] = {"base": {}, ADAPTER_ARM: {}}
    for ledger in halves:
        arms: Mapping[str, Mapping[str, Entry]] = ledger.arms(suite, task, ("output", "reference"))
        for name, entries in found.items():
            entries.update(arms[name])
    return found


def _shipped(items: HalvedItems, found: RecipeVerdict, run: RunDirectory) -> SeedsOutcome:
    """Merge the chosen adapter, judge it on half B with its merged model, and release a PASS."""
    work, suites = items.halves.b, items.suites
    items.shared.forget()
    recipe = run.load_recipe()
    refusal = why_not_released(run, recipe)
    session = open_run(run.root)
    arms = ["base", ADAPTER_ARM]
    if not refusal:
        merge(session)
        arms += MERGED_ARMS if recipe.merge.base == "both" else MERGED_ARMS[:1]
    if left_out := [arm for arm in recipe.evaluation.arms if arm not in arms]:
        say(
            f"{run.root}: arms left out with several seeds: {', '.join(left_out)}; measure them "
            f"with lora-kit evaluate {run.root} --output DIR"
        )
    subject = open_subject(session, None)
    facts = {"Items": "half B, which was not used for the choice of the seed"}
    plan = EvaluationPlan(
        EvaluatedBackbone.of(subject.backbone),
        subject.adapter,
        suites,
        loaded_arms(subject, arms),
        run.evaluation,
        ReportFacts.dated(subject.title, {**subject.facts, **facts}),
    )
    verdict, released = run_evaluation(plan, work).verdict, None
    status = VERDICT_STATUS[verdict.decision]
    if not refusal:
        try:
            released = release(session).directory
        except ReleaseError as error:
            refusal, status = str(error), error.status
    return SeedsOutcome(found, verdict, run.root, released, refusal, status)
