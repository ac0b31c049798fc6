"""Sizes of an optimizer step and of its forward passes, and the number of steps."""

from __future__ import annotations

import math

import torch

from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.training import TrainingSpec
from lora_kit.runtime.errors import TrainingError


def max_examples_per_process(spec: TrainingSpec, processes: int) -> int:
    """Return the maximum examples of an optimizer step on one process.

    Raises:
        TrainingError: if there are more processes than examples.
    """
    if spec.batch_size < processes:
        raise TrainingError(
            f"training.batch_size: fewer examples in a step than processes (got {spec.batch_size} "
            f"examples, {processes} processes). Fix: raise it, or launch fewer processes"
        )
    return math.ceil(spec.batch_size / processes)


def micro_batch_size(spec: TrainingSpec, processes: int, device: torch.device) -> int:
    """Return the maximum examples of a forward pass on one process.

    Raises:
        TrainingError: if there are more processes than examples in a step.
    """
    return min(length_group_size(spec, device), max_examples_per_process(spec, processes))


def length_group_size(spec: TrainingSpec, device: torch.device) -> int:
    """Return the number of adjacent examples of similar length in training order.

    The default is the size of a forward pass on one process. The number of processes has no
    influence, so that a step has the same examples on any number of them.
    """
    # Without passes of their own, the pairs of an embedding need no second forward pass; a
    # covariance is that of the whole step.
    alignment = spec.domain_alignment
    is_whole = spec.objective == "embedding" or (alignment and alignment.method == "coral")
    default = 4 if device.type == "cpu" and not is_whole else spec.batch_size
    return min(spec.micro_batch_size or default, spec.batch_size)


def answers_per_process(recipe: Recipe, processes: int) -> int:
    """Return the answers of a step of grpo or sdft that one process generates and trains on.

    Raises:
        TrainingError: if the processes cannot have equally many prompts, or the passes of a process
            equally many answers.
    """
    spec, generations = recipe.training, recipe.grpo.num_generations if recipe.grpo else 1
    if spec.batch_size % processes:
        raise TrainingError(
            f"training.batch_size: {spec.objective} gives each process the same number of prompts "
            f"(got {spec.batch_size} prompts, {processes} processes). Fix: use a multiple of the "
            "number of processes"
        )
    answers = spec.batch_size // processes * generations
    micro = min(spec.micro_batch_size or generations, answers)
    if answers % micro:
        raise TrainingError(
            f"training.micro_batch_size: does not divide the {answers} answers of a process (got "
            f"{micro}). Fix: use a divisor, or launch another number of processes"
        )
    return answers


def answers_per_pass(spec: TrainingSpec, answers: int, device: torch.device) -> int:
    """Return the answers of a forward pass of sdft, whose passes have equally many.

    Args:
        spec: the recipe's `training` section.
        answers: answers of a step on one process.
        device: device of the process.
    """
    most = min(length_group_size(spec, device), answers)
    return next(size for size in range(most, 0, -1) if answers % size == 0)


def optimizer_steps(examples: int, spec: TrainingSpec) -> int:
    """Return the number of optimizer steps over all epochs, as transformers counts them."""
    steps_per_epoch = max(math.ceil(examples / spec.batch_size), 1)
    return max(math.ceil(spec.epochs * steps_per_epoch), 1)
