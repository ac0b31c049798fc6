"""Train several recipes in turn, in one launch: starting it takes longer than the trainings."""

import json
import sys
from pathlib import Path
from typing import Any, TypedDict

import pytest

from lora_kit import pipeline
from lora_kit.recipe.recipe import Recipe
from lora_kit.training import setup
from lora_kit.training.guards import Guards
from lora_kit.training.preferences.grpo import GrpoStepTrainer
from lora_kit.training.preferences.sdft import SdftStepTrainer
from tests.integration.with_gradient import write_gradient
from tests.training.cut import cut_off


class Job(TypedDict, total=False):
    """A training.

    Attributes:
        recipe: the recipe, as JSON.
        run: run directory.
        cut: step after whose checkpoint the training is interrupted.
        resume: true if the run is resumed.
        sampled: true if answers are sampled by the policy; else they are `fixed_answers`.
    """

    recipe: str
    run: str
    cut: int
    resume: bool
    sampled: bool


def fixed_answers(
    _trainer: Any, prompts: list[list[int]], *_: Any, **__: Any
) -> tuple[list[list[int]], None]:
    """Return answers of 2 to 6 tokens that depend on the prompt and on those equal before it."""
    answers = []
    for row, prompt in enumerate(prompts):
        number = prompts[:row].count(prompt)
        seed = sum(prompt) + 31 * number
        answers.append([100 + (seed * (place + 7)) % 400 for place in range(2 + seed % 5)])
    return answers, None


def fixed_rollouts(
    _trainer: Any, prompts: list[list[int]]
) -> tuple[list[list[int]], list[list[int]]]:
    """Return prompts, and answers as `fixed_answers` does."""
    return prompts, fixed_answers(_trainer, prompts)[0]


def train(job: Job, patched: pytest.MonkeyPatch) -> None:
    recipe, run = Recipe.model_validate_json(job["recipe"]), Path(job["run"])
    patched.setenv("GRADIENT", f"{run}.safetensors")
    patched.setattr(Guards, "on_pre_optimizer_step", write_gradient)
    # A fifth of the time of so short a training.
    patched.setattr(setup, "plot_training", lambda *_, **__: None)
    if not job.get("sampled"):
        patched.setattr(GrpoStepTrainer, "_generate_single_turn", fixed_answers)
        patched.setattr(SdftStepTrainer, "_generate_transformers", fixed_rollouts)
    if "cut" in job:
        cut_off(patched, recipe, run, job["cut"])
    else:
        pipeline.train(recipe, run, resume=job.get("resume", False))


if __name__ == "__main__":
    for one in json.loads(Path(sys.argv[1]).read_text()):
        with pytest.MonkeyPatch.context() as patches:
            train(one, patches)
