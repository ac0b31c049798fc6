"""Adapter to adapter: its strength turned without training, picked on one half, proved on another.

The proof takes no correction for the number of scales. The pick is a function of half A alone, and
no item, nor any that depends on one, is in both halves; given the pick, half B is a sample as good
as any other, of one adapter that was fixed before it was looked at (sample splitting: Cox 1975,
Biometrika 62:441). What would need one is the best scale's result on the items that chose it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from lora_kit.adapter.attach import ADAPTER_WEIGHTS, adapter_sha256
from lora_kit.evaluation.arms.models import loaded_arms
from lora_kit.evaluation.assembly import LEDGER
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.evaluation.engine.work import Work, plan_work
from lora_kit.evaluation.harness import Measurement, run_evaluation
from lora_kit.evaluation.judge import judge
from lora_kit.evaluation.ledger import Ledger
from lora_kit.evaluation.reporting.report import ReportFacts
from lora_kit.evaluation.source import ADAPTER, InPlaceOfAdapter
from lora_kit.evaluation.suite import Suite, load_suites
from lora_kit.evaluation.verdict import Verdict
from lora_kit.recipe.objective import HEADED
from lora_kit.recipe.recipe import Recipe
from lora_kit.rescaling.halves import halve
from lora_kit.rescaling.pick import Candidate, Pick, pick
from lora_kit.rescaling.plot import plot_rescale
from lora_kit.rescaling.record import RescaleResult, sizes
from lora_kit.rescaling.strength import (
    SCALES,
    TRAINED,
    AdapterScale,
    require_linear,
    require_thirds,
    scaled,
    strengths,
)
from lora_kit.runs.directory import RunDirectory
from lora_kit.runs.session import Session, Subject, open_run, open_subject
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import AdapterError, RecipeError
from lora_kit.runtime.files import replace_directory, write_json
from lora_kit.runtime.launch import require_whole
from lora_kit.runtime.processes import made_by_first
from lora_kit.training.trainer import save_adapter


def rescale(
    target: Path | Session,
    scales: Sequence[float] = SCALES,
    by_layer: bool = False,
    suites: Sequence[str] | None = None,
    output: Path | None = None,
    no_cache: bool = False,
) -> RescaleResult:
    """Find the scale with the largest gain that retention allows, prove it, and write the adapter.

    What was measured is not measured again: killed, or given more scales, it goes on.

    Args:
        target: a run directory, or an open session.
        scales: that are tried, besides 1; see `strengths`.
        by_layer: whether each third of the decoder blocks is turned too.
        suites: bundled names or paths; by default those of the run's recipe.
        output: where the results go; by default the run directory.
        fresh: measure everything again.

    Raises:
        LoraKitError: before anything is measured: if the adapter's effect is not linear in one
            factor, there is nothing to gain or to keep, or a task is too small to be halved.
    """
    require_whole("rescale")
    tried = strengths(scales, by_layer)
    run = RunDirectory(target) if isinstance(target, Path) else target.run
    recipe = run.load_recipe()
    _require_no_head(recipe, run)
    if not (run.adapter / ADAPTER_WEIGHTS).is_file():
        raise AdapterError(f"{run.root}: no adapter in safetensors; run `lora-kit train` first")
    require_linear(run.adapter)
    chosen = _with_both_roles(load_suites(suites or recipe.evaluation.suites))
    session = open_run(target) if isinstance(target, Path) else target
    if by_layer:
        require_thirds(session.model)
    subject = open_subject(session, None)
    halves = halve(plan_work(chosen, session.backbone), session.backbone)
    to = RunDirectory(output) if output else run
    candidates = _measured(subject, chosen, halves.a, tried, to.rescale / "half-a", no_cache)
    picked = pick(candidates)
    say(f"{run.root}: {picked.why}")
    made_by_first(lambda: _clear(to, picked))
    proof = adapter = None
    if picked.chosen is not None:
        strength = candidates[picked.chosen].strength
        with scaled(session.model, strength):
            made_by_first(lambda: _write_adapter(session, to.scaled))
            adapter = to.scaled, adapter_sha256(to.scaled)
            proof = _proved(subject, chosen, halves.b, strength, to, no_cache)
    found = RescaleResult(
        candidates, picked, proof, adapter, adapter_sha256(run.adapter), sizes(halves),
        to.rescale_record, to.rescale_plot, to.rescale / "half-a", to.rescale / "half-b",
    )  # fmt: skip
    made_by_first(lambda: _write(found))
    return found


def _require_no_head(recipe: Recipe, run: RunDirectory) -> None:
    """Raises RecipeError for what is trained with a head, whatever suites there are."""
    objective = recipe.training.objective
    if objective in HEADED:
        raise RecipeError(
            f"{run.root}: training.objective: {objective}: the head is trained and saved in full, "
            "and is no update to be scaled; dial turns LoRA and rsLoRA of a language model"
        )


def _with_both_roles(suites: Sequence[Suite]) -> Sequence[Suite]:
    for role in ("gain", "retention"):
        if not any(suite.role == role for suite in suites):
            named = ", ".join(f"{suite.name} ({suite.role})" for suite in suites) or "none"
            raise RecipeError(
                f"evaluation.suites: dial weighs gain against retention, and no suite has the role "
                f"{role}; found: {named}. Name suites of both with --suite"
            )
    return suites


def _measured(
    subject: Subject,
    suites: Sequence[Suite],
    work: Sequence[Work],
    tried: Sequence[AdapterScale],
    directory: Path,
    no_cache: bool,
) -> tuple[Candidate, ...]:
    """All strengths on half A as arms of one evaluation, each judged as the adapter is."""
    model = _arms(subject, tried)
    facts = _facts(subject, "half A, on which the scale is picked", TRAINED)
    wanted = Measurement(
        subject.backbone, subject.adapter, suites, [model], directory, facts, no_cache=no_cache
    )
    of_trained = run_evaluation(wanted, work).verdict

    def judged() -> tuple[Candidate, ...]:
        ledger = Ledger(directory / LEDGER)
        return tuple(
            Candidate(
                one,
                of_trained
                if one == TRAINED
                else judge(InPlaceOfAdapter(ledger, _arm_name(one)), suites),
            )
            for one in tried
        )

    return made_by_first(judged)


def _arms(subject: Subject, tried: Sequence[AdapterScale]) -> LoadedArms:
    """Base and adapter, and the adapter at each other strength."""
    (loaded,) = loaded_arms(subject, ["base", ADAPTER])
    trained = next(arm for arm in loaded.arms if arm.name == ADAPTER)
    others = [
        Arm(_arm_name(one), _identity(trained, one), partial(scaled, strength=one))
        for one in tried
        if one != TRAINED
    ]
    return LoadedArms(loaded.load, (*loaded.arms, *others))


def _arm_name(strength: AdapterScale) -> str:
    return f"scale {strength.name}"


def _identity(trained: Arm, strength: AdapterScale) -> str:
    described = [trained.identity, *map(repr, strength.parts)]
    return hashlib.sha256("/".join(described).encode()).hexdigest()


def _proved(
    subject: Subject,
    suites: Sequence[Suite],
    work: Sequence[Work],
    strength: AdapterScale,
    to: RunDirectory,
    no_cache: bool,
) -> Verdict:
    """The verdict on half B of the adapter as it was written, which the model has now."""
    written = replace(subject, adapter=to.scaled)
    facts = _facts(subject, "half B, which the pick did not see", strength)
    models = loaded_arms(written, ["base", ADAPTER])
    wanted = Measurement(
        subject.backbone, to.scaled, suites, models, to.rescale / "half-b", facts, no_cache=no_cache
    )
    return run_evaluation(wanted, work).verdict


def _facts(subject: Subject, half: str, strength: AdapterScale) -> ReportFacts:
    return ReportFacts(
        f"{subject.title}, scale {strength.name}",
        {
            **subject.facts,
            "Scale": strength.name,
            "Items": half,
            "Date": datetime.now(UTC).date().isoformat(),
        },
    )


def _clear(to: RunDirectory, picked: Pick) -> None:
    """Take away what an earlier dial has left and this one contradicts or is yet to write."""
    to.rescale_record.unlink(missing_ok=True)
    to.rescale_plot.unlink(missing_ok=True)
    if picked.chosen is None:
        for stale in (to.scaled, to.rescale / "half-b"):
            shutil.rmtree(stale, ignore_errors=True)


def _write_adapter(session: Session, directory: Path) -> None:
    """Write the model's adapter as it is now.

    The same one is left alone, with what `lora-kit evaluate` may have put beside it.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adapter-", dir=directory.parent) as hidden:
        written = Path(hidden) / directory.name
        save_adapter(session.model, session.backbone, written)
        if (directory / ADAPTER_WEIGHTS).is_file() and (
            adapter_sha256(directory) == adapter_sha256(written)
        ):
            return
        replace_directory(written, directory)


def _write(found: RescaleResult) -> None:
    plot_rescale(found.candidates, found.pick, found.plot)
    write_json(found.record, found.to_dict())
