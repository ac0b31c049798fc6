"""Evaluation of arms: every arm of a model scores the same items in the same batches, in looks.

The arms of the first model, base and adapter, are asked look by look until each task has ended. The
other models are asked the same items, one model after another; a merged model may have more asked,
of the base as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from lora_kit.evaluation.arm_names import is_asked_with_shipped
from lora_kit.evaluation.engine.arm import Arm, Engine, EvaluationContext, LoadedArms, PathJudge
from lora_kit.evaluation.engine.arm_task import ArmTask, evaluate_task, measure_drift
from lora_kit.evaluation.engine.batching import PREFIX_TOKENS
from lora_kit.evaluation.engine.model_answers import LayoutsByKind, prepare_arms
from lora_kit.evaluation.engine.progress import Progress, shared_progress
from lora_kit.evaluation.engine.scoring import Scorer
from lora_kit.evaluation.engine.sharing import WorkShare, all_looks, work_shares
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.ledger import DRIFT
from lora_kit.evaluation.requests import Request
from lora_kit.modeling.held_weights import held_weights
from lora_kit.modeling.modes import eval_mode
from lora_kit.runtime.console import meter
from lora_kit.runtime.errors import EvaluationError, first_line
from lora_kit.runtime.out_of_memory import is_out_of_memory_error
from lora_kit.runtime.processes import process_state

SPREAD = "spread it over more GPUs (evaluation.gpus, --gpus), "
# Share of its cost that a look counts in the time left while it may not be asked: the time that is
# shown is then off by a factor of two at most, whatever is decided.
OPEN_SHARE = 0.5
# Looks at each task whose items are asked next, from 1.
Round = Sequence[range]


def evaluate_models(
    models: Sequence[LoadedArms],
    work: Sequence[Work],
    context: EvaluationContext,
    judge: PathJudge | None = None,
) -> dict[str, TaskPath]:
    """Evaluate the arms of all models, one model after another, and write results to the journal.

    Several processes share the batches. Batches depend neither on the number of processes nor on
    the arm, so that a difference between arms comes from the adapter alone.

    Args:
        models: arms by the model that they share; those of the first decide the path.
        work: tasks with their batches.
        context: settings and finished results.
        judge: judge of the tasks between looks; without one, all items are asked.

    Returns:
        Path of each task by its name.
    """
    items, cost = _left_to_ask(models, work, context, all_looks(work))
    later = [range(2, one.looks + 1) if judge else range(0) for one in work]
    _, open_cost = _left_to_ask(models, work, context, later)
    with (
        meter("evaluating", items, visible=process_state().is_main_process) as shown,
        shared_progress(shown, cost - (1 - OPEN_SHARE) * open_cost) as progress,
    ):
        asking = _Asking(work, context, progress)
        first, *others = models
        ended = [one.looks for one in work]

        def settle(asked: Round, left_out: Round) -> None:
            _, more = _left_to_ask(models, work, context, asked)
            items, less = _left_to_ask(models, work, context, left_out)
            progress.leave_out(items, OPEN_SHARE * less - (1 - OPEN_SHARE) * more)

        _ask(first, _until_ended(work, judge, ended, settle), asking)
        for loaded in others:
            _ask(loaded, [[range(1, end + 1) for end in ended]], asking)
        merged = list(ended)
        if judge is not None and (onward := judge.undecided_merged(_by_name(work, ended))):
            merged = [
                one.looks if one.name in onward else end
                for one, end in zip(work, ended, strict=True)
            ]
            left = [range(e + 1, m + 1) for e, m in zip(ended, merged, strict=True)]
            judged = [arms for loaded in models if (arms := _judged_with_merged(loaded))]
            more, costs = _left_to_ask(judged, work, context, left)
            progress.leave_out(-more, -costs)
            for loaded in judged:
                _ask(loaded, [left], asking)
    return {
        one.name: TaskPath(end, until) for one, end, until in zip(work, ended, merged, strict=True)
    }


@dataclass(frozen=True)
class TaskPath:
    """Numbers of the looks until which a task was asked.

    Attributes:
        adapter: last look of the adapter and the baselines.
        merged: last look of the base, of merged models, of exported files and of their controls.
    """

    adapter: int
    merged: int

    def last_look(self, arm: str) -> int:
        """Return the last look of an arm."""
        return self.merged if is_asked_with_shipped(arm) else self.adapter


@dataclass(frozen=True)
class _Asking:
    """Parts of an evaluation that all rounds of all models share."""

    work: Sequence[Work]
    context: EvaluationContext
    progress: Progress
    layouts: LayoutsByKind = field(default_factory=dict)


def _left_to_ask(
    models: Sequence[LoadedArms], work: Sequence[Work], context: EvaluationContext, looks: Round
) -> tuple[int, int]:
    """Return the items of some looks that all processes have left, and the cost of this one's."""
    state = process_state()
    items = cost = 0
    for loaded in models:
        by_process = work_shares(work, loaded, context, state.num_processes, looks)
        items += sum(share.items for own in by_process for share in own)
        cost += sum(share.cost for share in by_process[state.process_index])
    return items, cost


def _by_name(work: Sequence[Work], looks: Sequence[int]) -> dict[str, int]:
    return {one.name: look for one, look in zip(work, looks, strict=True)}


def _judged_with_merged(loaded: LoadedArms) -> LoadedArms | None:
    """Return the base, merged models, files and controls among some arms; `None` without any."""
    arms = tuple(arm for arm in loaded.arms if is_asked_with_shipped(arm.name))
    return replace(loaded, arms=arms, drift_identity=None) if arms else None


def _until_ended(
    work: Sequence[Work],
    judge: PathJudge | None,
    ended: list[int],
    settle: Callable[[Round, Round], None],
) -> Iterator[Round]:
    """Yield rounds until every task has ended, and write its last look to `ended`.

    Args:
        work: all tasks.
        judge: judge between looks; without one, there is one round of all looks.
        ended: last look of each task, which is written.
        settle: function that is told, after each look, which looks are asked next and which are not
            asked any more.
    """
    if judge is None:
        yield all_looks(work)
        return
    going = dict(enumerate(work))
    for look in range(1, max(one.looks for one in work) + 1):
        yield [range(look, look + 1) if n in going else range(0) for n in range(len(work))]
        # The results of all processes are in the journals, for the main process to judge.
        process_state().wait_for_everyone()
        asked = {one.name: look for one in going.values() if one.looks > look}
        names = judge.ended(asked) if asked else set()
        for n, one in list(going.items()):
            if one.looks == look or one.name in names:
                ended[n] = look
                del going[n]
        over = [ended[n] == look and n not in going for n in range(len(work))]
        settle(
            [range(look + 1, look + 2) if n in going else range(0) for n in range(len(work))],
            [
                range(look + 1, one.looks + 1) if is_over else range(0)
                for one, is_over in zip(work, over, strict=True)
            ],
        )
        if not going:
            return


def _ask(loaded: LoadedArms, rounds: Iterator[Round] | Sequence[Round], asking: _Asking) -> None:
    """Evaluate the arms of one model, which is loaded if an item is left, round by round."""
    state = process_state()
    # Without another name for the model, it is gone before the next one is loaded.
    answering, prepared = None, _Prepared()
    with ExitStack() as between_looks:
        for looks in rounds:
            shares = work_shares(asking.work, loaded, asking.context, state.num_processes, looks)
            # All processes load if any has work left: loading may train, which needs all of them.
            if not any(share for own in shares for share in own):
                continue
            if answering is None:
                answering = _load(loaded)
                if isinstance(answering, Engine):
                    between_looks.enter_context(answering)
                else:
                    between_looks.enter_context(eval_mode(answering))
                    between_looks.enter_context(held_weights(answering))
            own = shares[state.process_index]
            if isinstance(answering, Engine):
                _ask_engine(answering, loaded, own, asking)
            else:
                _ask_model(answering, loaded, own, asking, prepared)


def _load(loaded: LoadedArms) -> Any:
    """Return the model, or the engine, of some arms.

    Raises:
        EvaluationError: naming the arms, if it does not fit into memory.
    """
    try:
        return loaded.load()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory_error(error):
            raise
        names = " and ".join(arm.name for arm in loaded.arms)
        raise EvaluationError(
            f"the model of {names} does not fit into memory ({first_line(error)}). Fix: "
            f"{SPREAD if process_state().device.type == 'cuda' else ''}end other processes that "
            "hold memory, or leave the arm out"
        ) from error


@dataclass
class _Prepared:
    """Tasks that are prepared for the arms of a model, kept between looks where memory allows.

    Attributes:
        tasks: arms of a task, by its name.
        tokens: tokens of the prefixes that are kept.
    """

    tasks: dict[str, list[ArmTask]] = field(default_factory=dict)
    tokens: int = 0

    def keep(self, name: str, tasks: list[ArmTask], device: torch.device) -> None:
        """Keep a task, unless prefixes are kept already that have as many tokens as a batch's."""
        tokens = sum(task.kept_tokens for task in tasks)
        if self.tokens + tokens <= PREFIX_TOKENS.get(device.type, PREFIX_TOKENS["cpu"]):
            self.tasks[name] = tasks
            self.tokens += tokens


def _ask_engine(
    engine: Engine, loaded: LoadedArms, own: Sequence[WorkShare], asking: _Asking
) -> None:
    """Let an engine answer the batches of this process.

    Raises:
        EvaluationError: if it answers no item of a task.
    """
    context = asking.context
    for one, share in zip(asking.work, own, strict=True):
        arms = [arm for arm in loaded.arms if arm.applies_to(one)]
        errors: list[str] = []

        def answer(
            requests: Sequence[Request], arm: Arm, errors: list[str] = errors
        ) -> tuple[list[Outcome], bool]:
            with arm.active(engine):
                outcomes = engine.answer(requests)
            errors += [outcome.error for outcome in outcomes]
            return outcomes, False

        tasks = [ArmTask.of(one, arm, context, partial(answer, arm=arm)) for arm in arms]
        for records in evaluate_task(one, share.batches, tasks, asking.progress):
            if all(errors):
                names = " and ".join(arm.name for arm in arms)
                raise EvaluationError(
                    f"{one.name}: {names} answers no item (got {errors[0]}). Fix: look at the "
                    "program's limits, or leave the arm or the task out"
                )
            context.journal.append(records)


@torch.inference_mode()
def _ask_model(
    model: Any,
    loaded: LoadedArms,
    own: Sequence[WorkShare],
    asking: _Asking,
    prepared: _Prepared,
) -> None:
    context = asking.context
    scorer = Scorer(model, context.tokenizer, context.stop_token_ids)
    for one, share in zip(asking.work, own, strict=True):
        if not share:
            continue
        tasks = prepared.tasks.get(one.name)
        if tasks is None:
            tasks = prepare_arms(one, loaded, scorer, context, asking.layouts)
            if one.looks > 1:
                prepared.keep(one.name, tasks, scorer.device)
        for records in evaluate_task(one, share.batches, tasks, asking.progress):
            context.journal.append(records)
        if share.drift:
            key = one.key(DRIFT, loaded.drift_identity or "")
            drift = measure_drift(one, share.drift, key, scorer, context, asking.progress)
            for records in drift:
                context.journal.append(records)
