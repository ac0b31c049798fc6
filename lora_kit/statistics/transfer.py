"""Training on one task after another: what was kept, and what was of use before it was learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Transfer:
    """What a sequence of trainings did to all its tasks, in the unit of the scores.

    Attributes:
        backward: BWT, how much the later trainings changed a task's score since it was learnt;
            below 0 is forgetting (Lopez-Paz & Ranzato 2017, equation 3).
        forward: FWT, how much the earlier trainings changed a task's score before it was learnt,
            against the base (equation 4).
        forgetting: how far the last score of a task is below its best after any training before
            (Chaudhry et al. 2018, section 3, "forgetting measure"); below 0 if it is the best.
        final: mean score of all tasks after the last training (Lopez-Paz & Ranzato's ACC).
        forgetting_by_task: (tasks - 1,), of each task but the last.
    """

    backward: float
    forward: float
    forgetting: float
    final: float
    forgetting_by_task: tuple[float, ...]


def transfer(scores: Sequence[Sequence[float]] | NDArray[np.float64]) -> Transfer:
    """Summarise the scores of T tasks after each of T trainings.

    With R[i, j] the score on task j after training on tasks 1 to i and R[0] that of the base:
    BWT = mean over j < T of R[T, j] - R[j, j]; FWT = mean over j > 1 of R[j - 1, j] - R[0, j];
    forgetting = mean over j < T of max over 1 <= i < T of R[i, j], minus R[T, j].

    Args:
        scores: (T + 1, T), stage by task, higher is better; row 0 is the base, row i the model
            after its training on the task of column i - 1.

    Raises:
        ValueError: if it is no such matrix, has fewer than two tasks, or a score is missing.
    """
    try:
        matrix = np.asarray(scores, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"not every stage has a score for every task: {error}") from error
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] + 1:
        raise ValueError(
            f"scores of shape {matrix.shape}: for T tasks there have to be T + 1 stages, the base "
            "and one after each training"
        )
    tasks = matrix.shape[1]
    if tasks < 2:
        raise ValueError("one task has no other to be kept or transferred to; it takes two")
    if not np.isfinite(matrix).all():
        stage, task = np.argwhere(~np.isfinite(matrix))[0]
        raise ValueError(f"stage {stage} has no score for task {task + 1}")
    base, last = matrix[0], matrix[-1]
    learnt = np.diagonal(matrix[1:])
    before = np.diagonal(matrix[:-1])
    forgotten = (matrix[1:-1].max(axis=0) - last)[:-1]
    return Transfer(
        backward=float((last - learnt)[:-1].mean()),
        forward=float((before - base)[1:].mean()),
        forgetting=float(forgotten.mean()),
        final=float(last.mean()),
        forgetting_by_task=tuple(float(value) for value in forgotten),
    )
