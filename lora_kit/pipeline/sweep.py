"""Recipe and values to try -> the recipe that gains most of what retention allows, proved.

Trials are compared on half A of the items alone. Half B proves the winner, and only the winner: its
verdict needs no correction for the number of trials (as in `rescale`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lora_kit.pipeline.sweep_directory import (
    RECIPE,
    proved_before,
    require_same_inputs,
    require_same_sweep,
)
from lora_kit.pipeline.sweep_proof import prove
from lora_kit.pipeline.trials import TrialMaker
from lora_kit.recipe.document import Document
from lora_kit.recipe.objective import HEADED
from lora_kit.recipe.recipe import Recipe, recipe_document
from lora_kit.recipe.sweep import PrunerName, SweepSpec, as_yaml, duration_seconds
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import RecipeError
from lora_kit.runtime.files import write_json, write_text
from lora_kit.runtime.processes import process_state
from lora_kit.selection.sweep.choice import choose_trial
from lora_kit.selection.sweep.page import write_page
from lora_kit.selection.sweep.record import SWEEP, read_trials, record_path
from lora_kit.selection.sweep.result import WINNER, SweepResult
from lora_kit.selection.sweep.space import (
    Dimension,
    field_value,
    own_values,
    require_own_values,
    search_space,
)
from lora_kit.selection.sweep.study import (
    WORKER,
    claim_proof,
    enqueue_default,
    heartbeat,
    open_study,
    requeue_abandoned,
    require_optuna,
    worker_name,
)

if TYPE_CHECKING:
    from optuna import Study

PAGE = "sweep.html"
# Seconds between two looks at the trials of other workers.
POLL = 2.0


@dataclass(frozen=True)
class SweepRequest:
    """Sweep that is asked for.

    Attributes:
        reference: path or bundled name of the recipe.
        overrides: assignments to its fields.
        over: searched values by field; by default those of its `sweep` section.
        changes: assignments to other fields of that section.
        output: directory of the sweep; by default `sweeps/NAME`.
        is_worker: if true, make trials of a sweep that another process proves.
    """

    reference: str
    overrides: Sequence[str] = ()
    over: Mapping[str, str] = field(default_factory=dict)
    changes: Sequence[str] = ()
    output: Path | None = None
    is_worker: bool = False

    @cached_property
    def document(self) -> Document:
        """The recipe's document, read once: a file that is edited meanwhile changes no trial.

        Raises:
            RecipeError: if it cannot be read.
        """
        return recipe_document(self.reference)

    def recipe(self, assignments: Sequence[str] = ()) -> Recipe:
        """Return the recipe of a trial.

        Raises:
            RecipeError: if it does not work.
        """
        try:
            return Recipe.of(self.document, [*self.overrides, *assignments, "sweep=null"])
        except RecipeError as error:
            # Searched values were given by another option.
            said = str(error)
            for field_name in (one.partition("=")[0] for one in assignments):
                said = said.replace(f"--set {field_name}", f"--over {field_name}")
            raise RecipeError(said) from error

    def spec(self) -> tuple[Recipe, SweepSpec]:
        """Return the recipe as it is, and the search.

        Raises:
            RecipeError: if nothing is searched, or the recipe cannot be swept.
        """
        named = Recipe.of(self.document, self.overrides)
        if named.sweep is None and not self.over:
            raise RecipeError(
                "sweep.over: no field to search (got none). Fix: add --over "
                "training.learning_rate=1e-4..1e-3:log, or a `sweep` section to the recipe"
            )
        # JSON is YAML, in which the names of the fields hold points.
        over = [f"sweep.over={json.dumps(dict(self.over))}"] if self.over else []
        try:
            recipe = Recipe.of(self.document, [*self.overrides, *over, *self.changes])
        except RecipeError as error:
            # These fields were given by options of their own.
            said = str(error).replace("--set sweep.over", "--over").replace("--set sweep.", "--")
            raise RecipeError(said) from error
        assert recipe.sweep is not None
        if recipe.training.objective in HEADED:
            raise RecipeError(
                "training.objective: a sweep weighs gain against retention, which a head has none "
                f"of (got {recipe.training.objective}). Fix: sweep a recipe of a language model"
            )
        return recipe, recipe.sweep


def sweep(request: SweepRequest) -> SweepResult | None:
    """Try recipes, choose the best one on half A, and prove it on half B.

    A sweep that was killed goes on, also in the middle of a trial; several processes that share
    the directory work on one sweep.

    Args:
        request: recipe and search.

    Returns:
        The result; `None` for a worker, whose sweep another process proves.

    Raises:
        LoraKitError: before anything is trained, if the recipe, a searched value or a suite is
            refused.
    """
    require_optuna()
    if process_state().num_processes > 1:
        raise RecipeError(
            f"sweep: one process makes a trial (got {process_state().num_processes}). Fix: start "
            "without a launcher, and further workers with --worker"
        )
    recipe, spec = request.spec()
    dimensions = search_space(spec.over, request.recipe)
    require_own_values(recipe, spec, dimensions)
    directory = request.output or Path("sweeps") / recipe.name
    require_same_sweep(directory, recipe)
    maker = TrialMaker.of(request.recipe(), directory, spec)
    # First what makes it a sweep, for workers that begin meanwhile.
    write_text(directory / RECIPE, recipe.to_yaml())
    require_same_inputs(directory, maker.items.digests)
    with heartbeat(directory):
        if not request.is_worker:
            claim_proof(directory)
        _search(request, recipe, spec, dimensions, directory, maker)
    if request.is_worker:
        return None
    trials = read_trials(directory)
    earlier = proved_before(directory)
    choice = choose_trial(trials)
    say(f"{directory}: {choice.reason}")
    winner = next((one for one in trials if one.number == choice.chosen), None)
    result = SweepResult(
        recipe.name,
        directory,
        tuple(trials),
        choice,
        prove(maker, trials, winner) if winner else None,
        maker.items.halves.sizes,
        _facts(recipe, spec),
        {one.field: as_yaml(field_value(recipe, one.field)) for one in dimensions},
        tuple(one for one in earlier if one != choice.chosen),
    )
    _write(result, request)
    return result


def _facts(recipe: Recipe, spec: SweepSpec) -> dict[str, str]:
    return {
        "Backbone": recipe.backbone.model,
        "Searched": "; ".join(f"{name}: {values}" for name, values in spec.over.items()),
        "Trials": str(spec.trials),
        "Seeds of a trial": str(spec.seeds),
        "Budget": spec.budget or "none",
        "Sampler": spec.sampler,
        "Pruner": f"none ({reason})" if (reason := _why_not_pruned(recipe, spec)) else spec.pruner,
    }


def _search(
    request: SweepRequest,
    recipe: Recipe,
    spec: SweepSpec,
    dimensions: Sequence[Dimension],
    directory: Path,
    maker: TrialMaker,
) -> None:
    """Make trials until as many as wished have ended, or the budget is spent."""
    # Workers of one seed would try the same values.
    seed = None if request.is_worker else recipe.seed
    if reason := _why_not_pruned(recipe, spec):
        say(f"sweep.pruner: no trial is pruned: {reason}")
    pruner: PrunerName = "none" if reason else spec.pruner
    study = open_study(directory, spec.sampler, pruner, seed)
    known = own_values(recipe, dimensions)
    own = {name: value for name, value in known.items() if value is not None}
    enqueue_default(study, directory, own)
    _requeue(study, directory)
    waited = False
    while (left := _left(study, spec, directory)) != "none":
        if left == "running":
            if request.is_worker:
                return
            if not waited:
                say(f"{directory}: waiting for the trials of other workers")
            waited = True
            time.sleep(POLL)
            _requeue(study, directory)
            continue
        trial = study.ask()
        trial.set_user_attr(WORKER, worker_name())
        maker.make(study, trial, dimensions, request.recipe)


def _why_not_pruned(recipe: Recipe, spec: SweepSpec) -> str:
    """Return why the pruner has no losses to compare; empty if it has, or if there is no pruner."""
    if spec.pruner == "none":
        return ""
    of_data = [name for name in spec.over if name.startswith("data.") and "replay" not in name]
    if not recipe.data.validation:
        return "without data.validation there is no loss to prune by"
    if of_data:
        return f"validation losses are not comparable between values of {', '.join(of_data)}"
    return ""


def _requeue(study: Study, directory: Path) -> None:
    """Let trials of workers that have ended be tried again; a record of theirs is removed."""
    for number in requeue_abandoned(study, directory):
        say(f"{directory}: trial {number} is tried again: its worker has ended")
        record_path(directory, number).unlink(missing_ok=True)


def _left(study: Study, spec: SweepSpec, directory: Path) -> str:
    """Return `some` if a trial is left to make, `running` if others make the last ones, or `none`.

    The recipe as it is is tried whatever the budget is.
    """
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    states = [trial.state for trial in trials]
    begun = [one.datetime_start for one in trials if one.state == TrialState.RUNNING]
    running = len(begun)
    ended = states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED)
    waiting = states.count(TrialState.WAITING)
    if ended + running < spec.trials and (waiting or not _is_spent(spec, directory, begun)):
        return "some"
    return "running" if running else "none"


def _is_spent(spec: SweepSpec, directory: Path, begun: Sequence[datetime | None]) -> bool:
    """Return true if a further trial would, at the mean duration, exceed the budget.

    Args:
        spec: the search.
        directory: directory of the sweep.
        begun: time at which each running trial began.
    """
    if spec.budget is None:
        return False
    seconds = [trial.seconds for trial in read_trials(directory)]
    if not seconds:
        return False
    mean, now = sum(seconds) / len(seconds), datetime.now()
    running = [max((now - (one or now)).total_seconds(), mean) for one in begun]
    return sum(seconds) + sum(running) + mean > duration_seconds(spec.budget)


def _write(result: SweepResult, request: SweepRequest) -> None:
    """Write the winner's recipe, the record and the page."""
    winner, directory = result.winner, result.directory
    if winner is not None:
        best = request.recipe([f"{name}={value}" for name, value in winner.values.items()])
        seeded = best.model_copy(update={"seed": best.seed + winner.best_seed})
        write_text(directory / WINNER, seeded.to_yaml())
    write_json(directory / SWEEP, result.to_dict())
    write_page(directory / PAGE, result)
