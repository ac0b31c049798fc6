"""Gradient conflicts between the tasks of one adapter, and PCGrad.

The tasks are the recipe's sources. If a step has rows of several tasks, each task has a backward
pass of its own; the sum of the gradients equals the usual gradient up to rounding. A negative
cosine between two gradients means that a step for one task is a step against the other. PCGrad
removes the conflicting component from each gradient (Yu et al. 2020, arXiv:2001.06782,
algorithm 1).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import torch

from lora_kit.data.supervision import Example
from lora_kit.recipe.training import GradientConflictSpec

COSINE = "cosine: "
Gradient = list[torch.Tensor]


class GradientConflict:
    """Comparison of the tasks' gradients, and PCGrad if the recipe asks for it.

    Attributes:
        spec: the recipe's section `training.gradient_conflict`.
    """

    def __init__(
        self,
        spec: GradientConflictSpec,
        tasks: Sequence[int],
        names: Sequence[str],
        seed: int,
        record: Callable[[dict[str, float]], None],
    ):
        """Create the comparison.

        Args:
            spec: the recipe's section `training.gradient_conflict`.
            tasks: task index of each example of the data set.
            names: names of the tasks.
            seed: seed of the order of the projections.
            record: appends an entry to `metrics.jsonl`.
        """
        self.spec = spec
        self._tasks = tasks
        self._names = names
        self._seed = seed
        self._record = record

    def group_by_task(
        self, step: int, rows: Sequence[int], examples: Sequence[Example]
    ) -> dict[int, list[Example]]:
        """Return the examples of a step by task; all in one group if it needs no comparison.

        Args:
            step: index of the step, from 0.
            rows: row of each example in the data set.
            examples: examples of the step.
        """
        is_compared = self.spec.pcgrad or step % self.spec.steps == 0
        groups: dict[int, list[Example]] = {}
        for row, example in zip(rows, examples, strict=True):
            groups.setdefault(self._tasks[row] if is_compared else 0, []).append(example)
        return groups

    def combine(
        self, parameters: Sequence[torch.nn.Parameter], gradients: dict[int, Gradient], step: int
    ) -> None:
        """Record the cosines between the tasks' gradients and add their sum to `grad`.

        Args:
            parameters: all trained parameters.
            gradients: gradients by task, one tensor per parameter, of its shape and dtype.
            step: index of the step, from 0.
        """
        products = {
            (a, b): _product(gradients[a], gradients[b])
            for a, b in itertools.combinations_with_replacement(sorted(gradients), 2)
        }
        cosines = {
            f"{COSINE}{self._names[a]}, {self._names[b]}": product
            / max(math.sqrt(products[a, a] * products[b, b]), 1e-30)
            for (a, b), product in products.items()
            if a != b
        }
        # If float16 overflows, the loss scaler skips the step.
        is_finite = all(map(math.isfinite, products.values()))
        if cosines and is_finite and step % self.spec.steps == 0:
            self._record({"step": step + 1, **cosines})
        if self.spec.pcgrad and is_finite:
            gradients = project_conflicts(gradients, random.Random(f"{self._seed}/{step}"))
        for gradient in gradients.values():
            for parameter, part in zip(parameters, gradient, strict=True):
                parameter.grad = part if parameter.grad is None else parameter.grad + part


def pop_gradients(parameters: Sequence[torch.nn.Parameter]) -> Gradient:
    """Return the gradients of parameters, zeros if missing, and reset them to `None`."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradients


def project_conflicts(gradients: dict[int, Gradient], order: random.Random) -> dict[int, Gradient]:
    """Return each task's gradient, projected orthogonally to those it conflicts with.

    Args:
        gradients: gradients by task, one tensor per parameter.
        order: generator that shuffles the order of the projections.
    """
    projected = {}
    for task, gradient in gradients.items():
        others = [other for other in gradients if other != task]
        order.shuffle(others)
        for other in others:
            product = _product(gradient, gradients[other])
            if product < 0:
                share = product / _product(gradients[other], gradients[other])
                gradient = [
                    own - share * its for own, its in zip(gradient, gradients[other], strict=True)
                ]
        projected[task] = gradient
    return projected


def mean_cosines(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean cosine of each pair of tasks over the steps that were compared."""
    cosines: dict[str, list[float]] = {}
    for entry in history:
        for name, value in entry.items():
            if name.startswith(COSINE):
                cosines.setdefault(name.removeprefix(COSINE), []).append(value)
    return {pair: sum(values) / len(values) for pair, values in cosines.items()}


def _product(one: Gradient, other: Gradient) -> float:
    # Read at once: on a GPU, each number that is read waits for it.
    parts = torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).tolist()
    return math.fsum(parts) if all(map(math.isfinite, parts)) else math.nan
