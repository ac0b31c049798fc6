"""Rewards: the harness's metrics of an answer against the row's reference, or a reward model's.

An evaluation with a `generation` task of the same metric measures what is rewarded here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_kit.data.rows import Row
from lora_kit.evaluation.grading import said
from lora_kit.metrics.load import Metric, load_metric
from lora_kit.recipe.objective import GrpoSpec
from lora_kit.runtime.errors import EvaluationError, RecipeError
from lora_kit.training.preferences.reward_runs import RUN, RunReward, run_of

Reward = Callable[..., list[float | None]]


def rewards_of(spec: GrpoSpec, rows: Sequence[Row] = ()) -> list[Reward]:
    """One function a metric or a reward model, as TRL calls them.

    Args:
        spec: which.
        rows: whose prompts are going to be answered; a reward model has to be able to read them.

    Raises:
        RecipeError: if there is no such metric, or a run is not that of a reward model.
        DataError: naming the row that a reward model cannot read.
    """
    first_line = spec.scored_text == "first_line"
    found = [_reward(name, first_line, rows) for name in spec.rewards]
    # What the figures of a step are named by; of one name, they would be taken for one another.
    short = [reward.__name__ for reward in found]
    for name, reward in zip(spec.rewards, found, strict=True):
        if short.count(reward.__name__) > 1:
            reward.__name__ = name
    return found


def metric_or_run(name: str) -> Metric | Path:
    """What a recipe calls a reward: a metric, or the run of a reward model.

    Raises:
        RecipeError: if there is no such metric, or the run is not that of a reward model.
    """
    if name.startswith(RUN):
        return run_of(name)
    try:
        return load_metric(name, allow_hub=False)
    except EvaluationError as error:
        raise RecipeError(f"grpo.rewards: {error}") from error


def _reward(name: str, first_line: bool, rows: Sequence[Row]) -> Reward:
    found = metric_or_run(name)
    if isinstance(found, Path):
        return _of_a_run(found, first_line, rows)
    return _of_a_metric(found, name, first_line)


def _of_a_metric(metric: Metric, name: str, first_line: bool) -> Reward:
    def reward(
        completions: Sequence[Sequence[dict[str, Any]]], reference: Sequence[str], **_: Any
    ) -> list[float | None]:
        return [
            metric(said(turns[0]["content"], first_line), [wanted])
            for turns, wanted in zip(completions, reference, strict=True)
        ]

    reward.__name__ = Path(name).stem
    return reward


def _of_a_run(path: Path, first_line: bool, rows: Sequence[Row]) -> Reward:
    model = RunReward(path)
    model.require_readable(rows)

    def reward(
        prompts: Sequence[Sequence[dict[str, Any]]],
        completions: Sequence[Sequence[dict[str, Any]]],
        **_: Any,
    ) -> list[float | None]:
        return [*model(prompts, [said(turns[0]["content"], first_line) for turns in completions])]

    reward.__name__ = path.resolve().name
    return reward
