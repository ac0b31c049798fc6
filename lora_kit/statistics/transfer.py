"""Transfer metrics of continual learning: backward and forward transfer, forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Transfer:
    """Transfer metrics of a continual training on several tasks, in the unit of the scores.

    Attributes:
        backward: BWT, mean change of a task's score by later trainings; below 0 is forgetting
            (Lopez-Paz & Ranzato 2017, equation 3).
        forward: FWT, mean change of a task's score by earlier trainings, against the base
            (equation 4).
        forgetting: mean distance of a task's last score from its best score after an earlier
            training (Chaudhry et al. 2018, section 3, "forgetting measure"); below 0 if the last
            score is the best.
        final: mean score of all tasks after the last training (Lopez-Paz & Ranzato's ACC).
        forgetting_by_task: (tasks - 1,), forgetting of each task but the last.
    """

    backward: float
    forward: float
    forgetting: float
    final: float
    forgetting_by_task: tuple[float, ...]


def transfer(scores: Sequence[Sequence[float]] | NDArray[np.float64]) -> Transfer:
    """Compute the transfer metrics of T tasks after each of T trainings.

    With R[i, j] the score on task j after training on tasks 1 to i, and R[0] the base's scores:
    BWT = mean over j < T of R[T, j] - R[j, j]; FWT = mean over j > 1 of R[j - 1, j] - R[0, j];
    forgetting = mean over j < T of max over 1 <= i < T of R[i, j], minus R[T, j].

    Args:
        scores: (T + 1, T), stage by task, higher is better; row 0 is the base, row i the model
            after the training on the task of column i - 1.

    Raises:
        ValueError: if the shape differs, there are fewer than two tasks, or a score is missing.
    """
    try:
        matrix = np.asarray(scores, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"scores: a stage lacks the score of a task ({error})") from error
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] + 1:
        raise ValueError(
            "scores: T tasks require T + 1 stages, the base and one after each training (got shape "
            f"{matrix.shape})"
        )
    tasks = matrix.shape[1]
    if tasks < 2:
        raise ValueError(f"scores: transfer requires at least two tasks (got {tasks})")
    if not np.isfinite(matrix).all():
        stage, task = np.argwhere(~np.isfinite(matrix))[0]
        raise ValueError(f"scores: stage {stage} has no score for task {task + 1}")
    base, last = matrix[0], matrix[-1]
    after_training = np.diagonal(matrix[1:])
    before_training = np.diagonal(matrix[:-1])
    forgetting = (matrix[1:-1].max(axis=0) - last)[:-1]
    return Transfer(
        backward=float((last - after_training)[:-1].mean()),
        forward=float((before_training - base)[1:].mean()),
        forgetting=float(forgetting.mean()),
        final=float(last.mean()),
        forgetting_by_task=tuple(float(value) for value in forgetting),
    )
