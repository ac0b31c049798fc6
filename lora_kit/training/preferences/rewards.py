"""Reward functions of GRPO: metrics of an answer against its reference, or a reward model.

An evaluation with a `generation` task of the same metric measures the same quantity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_kit.data.rows import Row
from lora_kit.evaluation.grading import extract_scored_text
from lora_kit.metrics.load import Metric, load_metric
from lora_kit.recipe.objective import GrpoSpec
from lora_kit.runtime.errors import EvaluationError, RecipeError
from lora_kit.training.preferences.reward_runs import RUN, RewardModel, reward_run_directory

Reward = Callable[..., list[float | None]]


def reward_functions(spec: GrpoSpec, rows: Sequence[Row] = ()) -> list[Reward]:
    """Return one reward function per metric or reward model, with the signature that TRL calls.

    Args:
        spec: the recipe's `grpo` section.
        rows: training rows, whose prompts every reward model must be able to encode.

    Raises:
        RecipeError: if a metric does not exist, or a run is not that of a reward model.
        DataError: naming a row that a reward model cannot encode.
    """
    first_line = spec.scored_text == "first_line"
    rewards = [
        _model_reward(source, first_line, rows)
        if isinstance(source := resolve_reward(name), Path)
        else _metric_reward(source, name, first_line)
        for name in spec.rewards
    ]
    # TRL names the metrics of a step after the functions, so equal names would be merged.
    short_names = [reward.__name__ for reward in rewards]
    for name, reward in zip(spec.rewards, rewards, strict=True):
        if short_names.count(reward.__name__) > 1:
            reward.__name__ = name
    return rewards


def resolve_reward(name: str) -> Metric | Path:
    """Return the metric, or the run directory of the reward model, that a recipe names.

    Raises:
        RecipeError: if the metric does not exist, or the run is not that of a reward model.
    """
    if name.startswith(RUN):
        return reward_run_directory(name)
    try:
        return load_metric(name, allow_hub=False)
    except EvaluationError as error:
        raise RecipeError(f"grpo.rewards: {error}") from error


def _metric_reward(metric: Metric, name: str, first_line: bool) -> Reward:
    def reward(
        completions: Sequence[Sequence[dict[str, Any]]], reference: Sequence[str], **_: Any
    ) -> list[float | None]:
        return [
            metric(extract_scored_text(turns[0]["content"], first_line), [expected])
            for turns, expected in zip(completions, reference, strict=True)
        ]

    reward.__name__ = Path(name).stem
    return reward


def _model_reward(path: Path, first_line: bool, rows: Sequence[Row]) -> Reward:
    model = RewardModel(path)
    model.require_readable(rows)

    def reward(
        prompts: Sequence[Sequence[dict[str, Any]]],
        completions: Sequence[Sequence[dict[str, Any]]],
        **_: Any,
    ) -> list[float | None]:
        answers = [extract_scored_text(turns[0]["content"], first_line) for turns in completions]
        return [*model(prompts, answers)]

    reward.__name__ = path.resolve().name
    return reward
