"""Sampled answers: how they are drawn, and the score of an item from all of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from lora_kit.evaluation.item import Graded, GradeFunction, Item, Outcome
from lora_kit.evaluation.requests import GenerationRequest, SampledRequest, Sampling
from lora_kit.evaluation.task_spec import TaskSpec

SEPARATOR = "\n--- next sample ---\n"


def sampling_of(spec: TaskSpec, seed: int) -> Sampling | None:
    """Return the sampling of a task; `None` for greedy answers.

    Args:
        spec: the task.
        seed: seed of the suite.
    """
    if not spec.is_sampled:
        return None
    return Sampling(spec.samples, spec.temperature or 1.0, spec.top_p, seed)


def sampled(item: Item, sampling: Sampling) -> Item:
    """Return an item whose answers are sampled."""
    request = item.request
    assert isinstance(request, GenerationRequest)  # the suite is validated
    drawn = SampledRequest(request.prompt_ids, request.max_new_tokens, request.stop, sampling)
    return replace(item, request=drawn)


def grade_samples(grade: GradeFunction) -> GradeFunction:
    """Return a function that grades an item by the mean over its samples.

    The secondary metric `pass@k` is 1 if a sample has the score 1 (Chen et al. 2021,
    arXiv:2107.03374, with all k samples); it is left out for other scores than 0 and 1. An item
    with a sample without a score has none.
    """
    return partial(_grade, grade=grade)


def _grade(item: Item, outcome: Outcome, *, grade: GradeFunction) -> Graded:
    # The arm `retrieval` has one answer.
    texts = outcome.samples or (outcome.text,)
    graded = [
        grade(item, replace(outcome, text=text, samples=(), cut_off=outcome.cut_off[n : n + 1]))
        for n, text in enumerate(texts)
    ]
    output = SEPARATOR.join(one.output for one in graded)
    scores = [one.score for one in graded if one.score is not None]
    if len(scores) < len(graded):
        return Graded(None, output)
    measures = {
        name: float(np.mean([one.measures[name] for one in graded])) for name in graded[0].measures
    }
    if len(graded) > 1 and set(scores) <= {0.0, 1.0}:
        measures[f"pass@{len(graded)}"] = max(scores)
    return Graded(float(np.mean(scores)), output, measures)
