"""Trials of a sweep: trained on one shared backbone, and judged on half A of the items."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lora_kit.evaluation.assembly import LEDGER
from lora_kit.evaluation.engine.planning import part_of
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.gain_choice import GAIN_DECIMALS, failed_retention, standardized_gains
from lora_kit.evaluation.judge import judge
from lora_kit.evaluation.ledger import Ledger
from lora_kit.evaluation.seed_mean import SeedMean, without_binary_scores
from lora_kit.evaluation.verdict import Verdict
from lora_kit.pipeline.halved import HalvedItems
from lora_kit.pipeline.loaded_inputs import LoadedInputs
from lora_kit.pipeline.training import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sweep import SweepSpec
from lora_kit.runs.directory import HALF_A, HALF_A_FIRST, RunDirectory
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import LoraKitError, TrainingInterruptedError
from lora_kit.runtime.hashes import json_sha256
from lora_kit.selection.sweep.choice import choose_trial, hopeless, objective, retention_constraint
from lora_kit.selection.sweep.record import RUNS, Trial, read_trials, record_path, write_trial
from lora_kit.selection.sweep.space import Dimension, WithValues, field_value
from lora_kit.selection.sweep.study import DEFAULT, FOLDER, PRUNED, requeue_interrupted
from lora_kit.training.resuming import recorded_result

if TYPE_CHECKING:
    import optuna

# Share of the clusters of half A that a trial is judged on first.
FIRST_SHARE = 4


class GivenUpError(Exception):
    """End of a trial before it is judged on all of half A, with the reason."""


@dataclass(frozen=True)
class TrialMaker:
    """Maker of trials.

    Attributes:
        recipe: the recipe as it is.
        directory: directory of the sweep.
        spec: the search.
        items: items on which trials are compared, and those on which the winner is proved.
        first: few items of half A.
    """

    recipe: Recipe
    directory: Path
    spec: SweepSpec
    items: HalvedItems
    first: Sequence[Work]

    @classmethod
    def of(cls, recipe: Recipe, directory: Path, spec: SweepSpec) -> TrialMaker:
        """Load what all trials share.

        Raises:
            LoraKitError: if something cannot be read, a role has no suite, or a task is too small
                to be halved.
        """
        items = HalvedItems.of(recipe)
        first = [_few(one, items.shared.inputs()) for one in items.halves.a]
        return cls(recipe, directory, spec, items, first)

    def make(
        self,
        study: optuna.Study,
        asked: optuna.Trial,
        dimensions: Sequence[Dimension],
        with_values: WithValues,
    ) -> None:
        """Make one trial, tell the study of it, and write its record."""
        is_default = bool(asked.user_attrs.get(DEFAULT))
        values = {} if is_default else {one.field: one.suggest(asked) for one in dimensions}
        if is_default:
            # The sampler learns of the recipe's own values where they are in the space.
            for one in dimensions:
                if one.parameter(field_value(self.recipe, one.field)) is not None:
                    one.suggest(asked)
        trial = Trial(asked.number, values, is_default, "complete", "", 0.0)
        say(f"trial {trial.number} of {self.spec.trials}: {trial.name}")
        started, running = time.monotonic(), _RunningTrial(self, asked)
        try:
            recipe = with_values([f"{name}={value}" for name, value in values.items()])
            _refuse_twin(trial, recipe, read_trials(self.directory), self.recipe)
            trial = running.judged(trial, recipe)
        except GivenUpError as reason:
            trial = dataclasses.replace(trial, status="pruned", reason=str(reason))
        except TrainingInterruptedError:
            requeue_interrupted(study, self.directory, trial.number)
            raise
        except LoraKitError as error:
            # Without the recipe as it is, no lead over it could be told.
            if is_default:
                raise
            self.items.shared.forget()
            trial = dataclasses.replace(trial, status="refused", reason=str(error))
        seconds = time.monotonic() - started
        trial = dataclasses.replace(
            trial, seconds=seconds, runs=tuple(running.runs), validation=running.validation
        )
        write_trial(self.directory, trial)
        if not self._tell(study, asked, trial):
            # Another worker has taken this one for ended, and makes the trial again.
            record_path(self.directory, trial.number).unlink()

    def _tell(self, study: optuna.Study, asked: optuna.Trial, trial: Trial) -> bool:
        """Tell the study of a trial, and return false if it has been given to another worker."""
        from optuna.trial import TrialState

        if study.get_trials(deepcopy=False)[trial.number].state.is_finished():
            return False
        if trial.half_a is None:
            say(f"trial {trial.number}: {trial.status}: {trial.reason}")
            study.tell(asked, state=TrialState.PRUNED, skip_if_finished=True)
            return True
        judged = [one.half_a for one in read_trials(self.directory) if one.half_a]
        value = objective(trial.half_a, judged[0])
        asked.set_constraint("retention", retention_constraint(trial.half_a))
        study.tell(asked, value, skip_if_finished=True)
        kept = "keeps retention" if trial.keeps_retention else "retention is not shown to be kept"
        say(f"trial {trial.number}: gain {value:+.4g}, {kept}")
        return True


@dataclass
class _RunningTrial:
    """A trial while it is made.

    Attributes:
        maker: the maker.
        asked: the study's trial.
        runs: run directory of each seed so far, relative to the sweep's.
        validation: validation loss of the first seed at the end of each part of the training.
    """

    maker: TrialMaker
    asked: optuna.Trial
    runs: list[str] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)

    def judged(self, trial: Trial, recipe: Recipe) -> Trial:
        """Train and judge each seed.

        Raises:
            GivenUpError: if the trial is not worth more.
            LoraKitError: if its recipe does not work.
        """
        verdicts = []
        for seed in range(self.maker.spec.seeds):
            seeded = recipe.model_copy(update={"seed": recipe.seed + seed})
            run = RunDirectory(self.maker.directory / RUNS / self._folder(seed))
            # Nothing is said of the other trials without the recipe as it is.
            is_watched = seed == 0 and not trial.is_default
            if PRUNED in self.asked.user_attrs:
                self._give_up_pruned(run)
            if recorded_result(run) is None:
                self._train(run, seeded, is_watched)
            self.runs.append(str(run.root.relative_to(self.maker.directory)))
            if is_watched:
                self._require_hope(run, seeded)
            verdicts.append(
                self.maker.items.evaluated(run, seeded, self.maker.items.halves.a, HALF_A)
            )
        best, mean = best_seed(verdicts), self._mean(verdicts)
        return dataclasses.replace(trial, half_a=mean, best_seed=best)

    def _train(self, run: RunDirectory, recipe: Recipe, is_watched: bool) -> None:
        """Train an adapter, under the eyes of the pruner if it is watched.

        Raises:
            GivenUpError: if the pruner ends the training; the adapter is removed then.
        """
        is_pruned = False

        def ends_early(part: int, loss: float) -> bool:
            nonlocal is_pruned
            self.validation[part] = loss
            self.asked.report(-loss, part)
            is_pruned = self.asked.should_prune()
            if is_pruned:
                # Before the unfinished adapter is on the disk.
                self.asked.set_user_attr(PRUNED, ", ".join(f"{x:.3f}" for x in self._losses))
            return is_pruned

        loaded = self.maker.items.shared.inputs(recipe)
        watch = ends_early if is_watched else None
        train(recipe, run.root, resume=True, loaded=loaded, ends_early=watch)
        if is_pruned:
            self._give_up_pruned(run)

    @property
    def _losses(self) -> list[float]:
        return list(self.validation.values())

    def _folder(self, seed: int) -> str:
        """Return the name of a seed's run, which a trial that is tried again goes on with."""
        name = self.asked.user_attrs.get(FOLDER)
        if name is None:
            name = f"{self.asked.number:04}"
            self.asked.set_user_attr(FOLDER, name)
        return f"{name}-seed-{seed}" if seed else str(name)

    def _give_up_pruned(self, run: RunDirectory) -> None:
        """Remove the unfinished adapter of a training that the pruner has ended.

        Raises:
            GivenUpError: always.
        """
        shutil.rmtree(run.root, ignore_errors=True)
        losses = self.asked.user_attrs[PRUNED]
        raise GivenUpError(f"the validation loss is above that of other trials ({losses})")

    def _require_hope(self, run: RunDirectory, recipe: Recipe) -> None:
        maker = self.maker
        first = maker.items.evaluated(run, recipe, maker.first, HALF_A_FIRST)
        trials = read_trials(maker.directory)
        number = choose_trial(trials).chosen
        best = next((one.half_a for one in trials if one.number == number), None)
        if reason := hopeless(first, best):
            raise GivenUpError(reason)

    def _mean(self, verdicts: Sequence[Verdict]) -> Verdict:
        if len(verdicts) == 1:
            return verdicts[0]
        ledgers = [Ledger(self.maker.directory / run / HALF_A / LEDGER) for run in self.runs]
        return judge(
            SeedMean(ledgers), without_binary_scores(self.maker.items.suites, len(ledgers))
        )


def _refuse_twin(trial: Trial, recipe: Recipe, ended: Sequence[Trial], default: Recipe) -> None:
    """Give a trial up whose values another one has had.

    Raises:
        GivenUpError: naming the other one.
    """
    if trial.is_default:
        return
    for other in ended:
        is_twin = recipe == default if other.is_default else trial.values == other.values
        if is_twin and other.number != trial.number:
            raise GivenUpError(f"its values are those of trial {other.number}")


def best_seed(verdicts: Sequence[Verdict]) -> int:
    """Return the index of the adapter that gains most of those that keep retention, if any does."""
    gains = standardized_gains(verdicts)
    return max(
        range(len(verdicts)),
        key=lambda n: (
            not failed_retention(verdicts[n]),
            round(gains[n].value, GAIN_DECIMALS),
            -n,
        ),
    )


def _few(work: Work, loaded: LoadedInputs) -> Work:
    """Return a quarter of the clusters of a task, in the order of their digests."""
    clusters = sorted({item.cluster for item in work.task.items}, key=lambda one: json_sha256(one))
    few = set(clusters[: max(len(clusters) // FIRST_SHARE, 1)])
    ids = {item.id for item in work.task.items if item.cluster in few}
    return part_of(work, ids, loaded.backbone)
