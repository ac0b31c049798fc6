"""Adapter -> rescaled adapter: the scale is chosen on one half of the items, proved on the other.

The proof needs no correction for the number of scales. The choice depends on half A alone, and no
item, nor any in its cluster, is in both halves; given the choice, half B is a sample like any other
of an adapter that was fixed beforehand (sample splitting: Cox 1975, Biometrika 62:441). A
correction would be needed for the best scale's result on the items that chose it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lora_kit.adapter.saved import ADAPTER_WEIGHTS, adapter_sha256, save_adapter
from lora_kit.evaluation.arms.models import loaded_arms
from lora_kit.evaluation.assembly import LEDGER
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.halves import halve
from lora_kit.evaluation.harness import EvaluatedBackbone, EvaluationPlan, run_evaluation
from lora_kit.evaluation.judge import judge
from lora_kit.evaluation.ledger import Ledger
from lora_kit.evaluation.ledger_view import ADAPTER_ARM, ArmAsAdapter
from lora_kit.evaluation.reporting.report import ReportFacts
from lora_kit.evaluation.suite import Suite, load_suites, without_judges
from lora_kit.evaluation.thoughts import Thinking
from lora_kit.recipe.objective import HEADED
from lora_kit.recipe.recipe import Recipe
from lora_kit.rescaling.choice import Candidate, ScaleChoice, choose_scale
from lora_kit.rescaling.intruders import IntruderSearch, ReducedAdapter, reduce_intruders
from lora_kit.rescaling.plot import plot_rescale
from lora_kit.rescaling.record import RescaleResult
from lora_kit.rescaling.scale import (
    SCALES,
    TRAINED,
    AdapterScale,
    candidate_scales,
    require_linear,
    require_thirds,
    scaled_adapter,
)
from lora_kit.runs.directory import RunDirectory
from lora_kit.runs.session import (
    Session,
    Subject,
    close_session,
    evaluation_gpus,
    open_run,
    open_subject,
)
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import AdapterError, RecipeError
from lora_kit.runtime.files import replace_directory, write_json
from lora_kit.runtime.hashes import json_sha256
from lora_kit.runtime.launch import needs_one_process
from lora_kit.runtime.processes import broadcast_from_main, continue_alone
from lora_kit.runtime.temporaries import hidden_beside


@dataclass(frozen=True)
class _Rescaling:
    """Inputs of both halves' evaluations.

    Attributes:
        subject: the run, with the adapter as trained.
        suites: suites of both roles.
        output: directory of the results.
        no_cache: if true, ignore existing results.
        reduced: adapter with its intruder dimensions reduced; `None` if that is not tried.
    """

    subject: Subject
    suites: Sequence[Suite]
    output: RunDirectory
    no_cache: bool
    reduced: ReducedAdapter | None

    def scaled(self, model: Any, scale: AdapterScale) -> AbstractContextManager[Any]:
        """Return a context manager that yields the model with its adapter at a scale."""
        return scaled_adapter(model, scale, self.reduced.parameters if self.reduced else None)

    def plan(
        self, adapter: Path, models: Sequence[LoadedArms], directory: Path, facts: ReportFacts
    ) -> EvaluationPlan:
        """Return the plan of an evaluation of one half."""
        backbone = EvaluatedBackbone.of(self.subject.backbone)
        return EvaluationPlan(
            backbone, adapter, self.suites, models, directory, facts, no_cache=self.no_cache
        )


def rescale(
    target: Path | Session,
    scales: Sequence[float] = SCALES,
    by_layer: bool = False,
    suites: Sequence[str] | None = None,
    output: Path | None = None,
    no_cache: bool = False,
    gpus: int | None = None,
    intruders: IntruderSearch | None = None,
) -> RescaleResult:
    """Find the scale with the largest gain that retention allows, prove it, and write the adapter.

    Existing results are reused, after an interruption or with more scales. Processes of a launch
    that shards the model end as in `evaluate`.

    Args:
        target: a run directory, or an open session.
        scales: scales to try besides 1; see `candidate_scales`.
        by_layer: if true, also rescale each third of the decoder blocks.
        suites: bundled names or paths; by default those of the run's recipe.
        output: directory of the results; by default the run directory.
        no_cache: if true, ignore existing results.
        gpus: overrides the recipe's `evaluation.gpus`; ignored for an open session.
        intruders: factors of the intruder dimensions to try at each uniform scale.

    Raises:
        LoraKitError: before anything is measured, if the adapter's effect is not linear in one
            factor, a role has no suite, or a task is too small to be halved.
    """
    tried = candidate_scales(scales, by_layer, intruders.factors if intruders else ())
    run = RunDirectory(target) if isinstance(target, Path) else target.run
    recipe = run.load_recipe()
    _require_rescalable(recipe, run)
    loaded = load_suites(suites or recipe.evaluation.suites)
    chosen = _with_both_roles(without_judges(loaded, "strengths are not judged"))
    session = _opened(target, gpus)
    if by_layer:
        require_thirds(session.model)
    subject = open_subject(session, None)
    thinking = Thinking.of(recipe.evaluation)
    halves = halve(plan_work(chosen, session.backbone, thinking=thinking), session.backbone)
    reduced = _reduced(session, intruders) if intruders else None
    if reduced and not reduced.intruders:
        tried = tuple(scale for scale in tried if scale.intruders == 1)
    to = RunDirectory(output) if output else run
    setting = _Rescaling(subject, chosen, to, no_cache, reduced)
    candidates = _measured(setting, halves.a, tried)
    picked = choose_scale(candidates)
    say(f"{run.root}: {picked.reason}")
    broadcast_from_main(lambda: _clear(to, picked))
    trained = adapter_sha256(run.adapter)
    found = RescaleResult(candidates, picked, None, trained, None, halves.sizes, to, reduced)
    if found.chosen:
        found = _proved(setting, halves.b, found, found.chosen.scale)
    broadcast_from_main(lambda: _write(found))
    return found


def _opened(target: Path | Session, gpus: int | None) -> Session:
    """Return the open session, on one process alone if it spreads the model over GPUs."""
    given = None if isinstance(target, Session) else gpus
    if needs_one_process(given or evaluation_gpus(target)):
        close_session(target)
        continue_alone()
    return open_run(target, gpus=gpus) if isinstance(target, Path) else target


def _reduced(session: Session, intruders: IntruderSearch) -> ReducedAdapter:
    reduced = reduce_intruders(session.model, intruders)
    same = (
        "" if reduced.intruders else "; every factor gives the adapter as trained, so none is tried"
    )
    say(f"{session.run.root}: {reduced.describe()}{same}")
    return reduced


def _require_rescalable(recipe: Recipe, run: RunDirectory) -> None:
    """Refuse a run without an adapter, with a head, or whose effect is not linear in a factor."""
    objective = recipe.training.objective
    if objective in HEADED:
        raise RecipeError(
            f"{run.root}: only language models are rescaled: a head is saved in full, and "
            f"an embedding has no losses to weigh (got training.objective {objective}). "
            "Fix: rescale LoRA or rsLoRA of a language model"
        )
    if not (run.adapter / ADAPTER_WEIGHTS).is_file():
        raise AdapterError(
            f"{run.root}: has no adapter in safetensors. Fix: run `lora-kit train` first"
        )
    require_linear(run.adapter)


def _with_both_roles(suites: Sequence[Suite]) -> Sequence[Suite]:
    for role in ("gain", "retention"):
        if not any(suite.role == role for suite in suites):
            named = ", ".join(f"{suite.name} ({suite.role})" for suite in suites) or "none"
            raise RecipeError(
                f"evaluation.suites: rescale weighs gain against retention, and no suite has the "
                f"role {role} (got {named}). Fix: name suites of both roles with --suite"
            )
    return suites


def _measured(
    setting: _Rescaling, work: Sequence[Work], tried: Sequence[AdapterScale]
) -> tuple[Candidate, ...]:
    """Evaluate all scales on half A as arms of one evaluation, each judged as the adapter is."""
    subject, directory = setting.subject, setting.output.rescale / "half-a"
    facts = _facts(setting, "half A, on which the scale was chosen", TRAINED)
    wanted = setting.plan(subject.adapter, [_arms(setting, tried)], directory, facts)
    of_trained = run_evaluation(wanted, work).verdict

    def judged() -> tuple[Candidate, ...]:
        ledger = Ledger(directory / LEDGER)
        return tuple(
            Candidate(
                one,
                of_trained
                if one == TRAINED
                else judge(ArmAsAdapter(ledger, _arm_name(one)), setting.suites),
            )
            for one in tried
        )

    return broadcast_from_main(judged)


def _arms(setting: _Rescaling, tried: Sequence[AdapterScale]) -> LoadedArms:
    """Return base, adapter, and the adapter at each other scale as arms."""
    (loaded,) = loaded_arms(setting.subject, ["base", ADAPTER_ARM])
    trained = next(arm for arm in loaded.arms if arm.name == ADAPTER_ARM)
    reduced = setting.reduced
    others = [
        Arm(
            _arm_name(one),
            json_sha256(
                [
                    trained.identity,
                    *one.parts,
                    *(reduced.identity(one.intruders) if reduced else ()),
                ]
            ),
            partial(setting.scaled, scale=one),
        )
        for one in tried
        if one != TRAINED
    ]
    return LoadedArms(loaded.load, (*loaded.arms, *others))


def _arm_name(scale: AdapterScale) -> str:
    return f"scale {scale.name}"


def _proved(
    setting: _Rescaling, work: Sequence[Work], found: RescaleResult, scale: AdapterScale
) -> RescaleResult:
    """Write the adapter at the chosen scale, and judge it on half B as it was written."""
    subject, to = setting.subject, setting.output
    with setting.scaled(subject.model, scale):
        broadcast_from_main(lambda: _write_adapter(subject, to.scaled))
        written = replace(subject, adapter=to.scaled)
        facts = _facts(setting, "half B, which was not used for the choice", scale)
        models = loaded_arms(written, ["base", ADAPTER_ARM])
        wanted = setting.plan(to.scaled, models, to.rescale / "half-b", facts)
        proof = run_evaluation(wanted, work).verdict
    return replace(found, proof=proof, rescaled=adapter_sha256(to.scaled))


def _facts(setting: _Rescaling, half: str, scale: AdapterScale) -> ReportFacts:
    subject, reduced = setting.subject, setting.reduced
    found = {"Intruders": reduced.describe()} if reduced else {}
    facts = {**subject.facts, "Scale": scale.name, **found, "Items": half}
    return ReportFacts.dated(f"{subject.title}, scale {scale.name}", facts)


def _clear(to: RunDirectory, picked: ScaleChoice) -> None:
    """Remove the results of an earlier call that this one replaces."""
    to.rescale_record.unlink(missing_ok=True)
    to.rescale_plot.unlink(missing_ok=True)
    if picked.chosen is None:
        for stale in (to.scaled, to.rescale / "half-b"):
            shutil.rmtree(stale, ignore_errors=True)


def _write_adapter(subject: Subject, directory: Path) -> None:
    """Write the model's adapter at its present scale.

    An identical adapter is left alone, with the evaluation that may lie beside it.
    """
    with hidden_beside(directory) as hidden:
        written = hidden / directory.name
        save_adapter(subject.model, subject.backbone, written)
        if (directory / ADAPTER_WEIGHTS).is_file() and (
            adapter_sha256(directory) == adapter_sha256(written)
        ):
            return
        replace_directory(written, directory)


def _write(found: RescaleResult) -> None:
    plot_rescale(found.candidates, found.choice, found.output.rescale_plot)
    write_json(found.output.rescale_record, found.to_dict())
