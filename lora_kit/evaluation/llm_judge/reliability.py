"""Reliability of a judge's preferences, from the results of a task."""

from __future__ import annotations

import numpy as np

from lora_kit.evaluation.pairs import Pairs, mean_score
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.task_verdict import JudgeReliability

# Names of the measures of an item.
AGREES, UNREAD = "orders_agree", "unread_replies"


def judge_reliability(pairs: Pairs, task: TaskSpec) -> JudgeReliability | None:
    """Return the reliability of the judge of a task; `None` for a task without one."""
    if task.judge is None:
        return None

    def mean(name: str) -> float:
        return float(np.mean([entry.measures.get(name, 0.0) for entry in pairs.after]))

    return JudgeReliability(
        task.judge.name, mean_score(pairs.after), mean(AGREES), mean(UNREAD), task.judge.accuracy
    )
