"""Several tasks in one adapter: whether their gradients pull the same way, and what can be done.

The tasks are the recipe's sources. Where a step has rows of several, each has a backward pass of
its own; their sum is the gradient of the step as it would be otherwise, to rounding. The cosine of
two says whether a step for one is one against the other. Gradient surgery takes out of each what
points against another (PCGrad: Yu et al. 2020, arXiv:2001.06782, algorithm 1).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import torch

from lora_kit.data.tokenization import Example
from lora_kit.recipe.training import GradientConflictSpec

COSINE = "cosine: "
Gradient = list[torch.Tensor]


class GradientConflict:
    """The gradients of a step, task by task."""

    def __init__(
        self,
        spec: GradientConflictSpec,
        tasks: Sequence[int],
        names: Sequence[str],
        seed: int,
        record: Callable[[dict[str, float]], None],
    ):
        """Plan.

        Args:
            spec: the recipe's.
            tasks: of each example of the data set.
            names: of the tasks.
            seed: of the order in which gradients are projected.
            record: takes a line of `metrics.jsonl`.
        """
        self.spec = spec
        self._tasks = tasks
        self._names = names
        self._seed = seed
        self._record = record

    def groups(
        self, step: int, rows: Sequence[int], examples: Sequence[Example]
    ) -> dict[int, list[Example]]:
        """The examples of a step by task; those of one that is not looked at stay together."""
        looked = self.spec.pcgrad or step % self.spec.steps == 0
        found: dict[int, list[Example]] = {}
        for row, example in zip(rows, examples, strict=True):
            found.setdefault(self._tasks[row] if looked else 0, []).append(example)
        return found

    def settle(
        self, parameters: Sequence[torch.nn.Parameter], gradients: dict[int, Gradient], step: int
    ) -> None:
        """Record how the tasks' gradients lie to one another, and make one of them.

        Args:
            parameters: all that is trained; their `grad` is added to.
            gradients: of each task, a tensor a parameter.
            step: that is under way, counted from 0.
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
        # Where float16 overflows, the scaler takes no step.
        is_finite = all(map(math.isfinite, products.values()))
        if cosines and is_finite and step % self.spec.steps == 0:
            self._record({"step": step + 1, **cosines})
        if self.spec.pcgrad and is_finite:
            gradients = operated(gradients, random.Random(f"{self._seed}/{step}"))
        for gradient in gradients.values():
            for parameter, part in zip(parameters, gradient, strict=True):
                parameter.grad = part if parameter.grad is None else parameter.grad + part


def taken(parameters: Sequence[torch.nn.Parameter]) -> Gradient:
    """The gradients as they are; none is left."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return found


def operated(gradients: dict[int, Gradient], order: random.Random) -> dict[int, Gradient]:
    """Each task's gradient without what points against another's.

    Args:
        gradients: of each task.
        order: draws the order in which the others are looked at.
    """
    found = {}
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
        found[task] = gradient
    return found


def mean_cosines(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each pair of tasks, over all steps that were looked at."""
    found: dict[str, list[float]] = {}
    for entry in history:
        for name, value in entry.items():
            if name.startswith(COSINE):
                found.setdefault(name.removeprefix(COSINE), []).append(value)
    return {pair: sum(values) / len(values) for pair, values in found.items()}


def _product(one: Gradient, other: Gradient) -> float:
    parts = [float((a * b).sum()) for a, b in zip(one, other, strict=True)]
    return math.fsum(parts) if all(map(math.isfinite, parts)) else math.nan
