"""Rewards: the harness's metrics of an answer against the row's reference, or a reward model's.

An evaluation with a `generation` task of the same metric measures what is rewarded here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_kit.data.rows import Row
from lora_kit.errors import EvaluationError, RecipeError
from lora_kit.evaluation.grading import said
from lora_kit.evaluation.metrics import load_metric
from lora_kit.objective_spec import GrpoSpec
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
    first_line = spec.answer == "first_line"
    try:
        found = [
            _of_a_run(name, first_line, rows) if name.startswith(RUN) else _reward(name, first_line)
            for name in spec.rewards
        ]
    except EvaluationError as error:
        raise RecipeError(f"grpo.rewards: {error}") from error
    # What the figures of a step are named by; of one name, they would be taken for one another.
    short = [reward.__name__ for reward in found]
    for name, reward in zip(spec.rewards, found, strict=True):
        if short.count(reward.__name__) > 1:
            reward.__name__ = name
    return found


def _reward(name: str, first_line: bool) -> Reward:
    metric = load_metric(name)

    def reward(
        completions: Sequence[Sequence[dict[str, Any]]], reference: Sequence[str], **_: Any
    ) -> list[float | None]:
        return [
            metric(said(turns[0]["content"], first_line), [wanted])
            for turns, wanted in zip(completions, reference, strict=True)
        ]

    reward.__name__ = Path(name).stem
    return reward


def _of_a_run(name: str, first_line: bool, rows: Sequence[Row]) -> Reward:
    path = run_of(name)
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
