"""Grading: functions that score the outcome of an item."""

from __future__ import annotations

import importlib.metadata
import math
import random
from functools import partial
from pathlib import Path

import numpy as np
from scipy.special import logsumexp

from lora_kit.evaluation.item import Graded, GradeFunction, Item, Outcome
from lora_kit.evaluation.requests import ChoiceRequest, LossRequest
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.metrics.instruction_checks import follows_instructions
from lora_kit.metrics.load import Metric, load_metric
from lora_kit.runtime.hashes import file_sha256

# Increase when the same outcome can have another grade than before.
GRADING_VERSION = "2"


def grading_code(spec: TaskSpec) -> str:
    """Return a digest of code outside of this package that grades a task; empty for none."""
    if spec.kind == "lm_eval":
        source = Path(spec.source)
        described = file_sha256(source) if source.is_file() else spec.source
        return f"{importlib.metadata.version('lm_eval')}/{described}"
    if spec.metric is None or not Path(spec.metric).exists():
        return ""
    path = Path(spec.metric)
    files = [path] if path.is_file() else sorted(path.glob("*.py"))
    return "/".join(file_sha256(file) for file in files)


def task_grader(spec: TaskSpec) -> GradeFunction:
    """Return the function that grades the outcomes of a task.

    Raises:
        EvaluationError: if the metric of the task cannot be loaded.
    """
    if spec.kind == "loss":
        return grade_loss
    if spec.kind == "instructions":
        return grade_instruction
    if spec.kind == "judge":
        return grade_unjudged
    if spec.kind == "generation":
        assert spec.metric is not None  # the suite is validated
        first_line = spec.scored_text == "first_line"
        return partial(grade_generation, metric=load_metric(spec.metric), first_line=first_line)
    return partial(grade_choice, score=spec.score or "accuracy")


def grade_class(item: Item, outcome: Outcome, *, score: str) -> Graded:
    """Score 1 if the most probable class is correct, else 0.

    `loss` is the cross-entropy, in nats. An item with a NaN has no score.
    """
    assert item.answer is not None
    log_probabilities = outcome.log_likelihoods
    if any(map(math.isnan, log_probabilities)):
        return Graded(None, "")
    chosen = int(np.argmax(log_probabilities))
    measures = {
        "accuracy": float(chosen == item.answer),
        "loss": -log_probabilities[item.answer],
    }
    return Graded(measures.get(score, measures["accuracy"]), item.choices[chosen], measures)


def grade_reward(item: Item, outcome: Outcome, *, score: str) -> Graded:
    """Score 1 if the choice with the highest reward is correct, else 0.

    `loss` is the cross-entropy of the correct choice under the softmax of the rewards, in nats;
    for two choices, -log sigmoid of their difference, as in training. Ties are broken at random,
    seeded by the item's id, because the first choice may always be the correct one. An item with a
    reward that is not finite has no score.
    """
    assert item.answer is not None
    rewards = outcome.log_likelihoods
    if not all(map(math.isfinite, rewards)):
        return Graded(None, "")
    best = [number for number, reward in enumerate(rewards) if reward == max(rewards)]
    chosen = random.Random(item.id).choice(best)
    measures = {
        "accuracy": float(chosen == item.answer),
        "loss": float(logsumexp(rewards)) - rewards[item.answer],
    }
    return Graded(measures.get(score, measures["accuracy"]), item.choices[chosen], measures)


def grade_loss(item: Item, outcome: Outcome) -> Graded:
    """Compute nats per supervised token, and bits per byte, which compare across tokenizers.

    Bytes are those of the supervised text; the likelihood includes the end-of-turn token, which
    adds no bytes.
    """
    assert isinstance(item.request, LossRequest)
    (total,) = outcome.log_likelihoods
    measures = {"nats": -total}
    if item.scored_bytes:
        measures["bits_per_byte"] = -total / math.log(2) / item.scored_bytes
    return Graded(-total / item.request.example.supervised, "", measures)


def grade_choice(item: Item, outcome: Outcome, *, score: str) -> Graded:
    """Score 1 if the likeliest choice is correct, else 0; also per byte and per token.

    `loss` is the cross-entropy of the correct choice among all, in nats; it also changes where the
    chosen answer does not. An item with a likelihood that is not finite has no score.
    """
    assert isinstance(item.request, ChoiceRequest)
    assert item.answer is not None
    totals = outcome.log_likelihoods
    if not all(map(math.isfinite, totals)):
        return Graded(None, "")
    tokens = [branch.scored for branch in item.request.branches]
    lengths = {
        "accuracy": [1] * len(totals),
        "accuracy_per_byte": [len(choice.encode()) for choice in item.choices],
        "accuracy_per_token": tokens,
    }
    best = {name: int(np.argmax(np.array(totals) / np.array(by))) for name, by in lengths.items()}
    measures = {name: float(chosen == item.answer) for name, chosen in best.items()}
    measures["loss"] = float(logsumexp(totals)) - totals[item.answer]
    output = item.choices[best.get(score, best["accuracy"])]
    return Graded(measures.get(score, measures["accuracy"]), output, measures)


def grade_generation(item: Item, outcome: Outcome, *, metric: Metric, first_line: bool) -> Graded:
    """Score the generated text, or its first line, against the references with a metric."""
    answer = extract_scored_text(outcome.text, first_line)
    return Graded(metric(answer, item.references), outcome.text.strip())


def extract_scored_text(text: str, first_line: bool) -> str:
    """Return the part of a generated text that is scored."""
    text = text.strip()
    return text.partition("\n")[0] if first_line else text


def grade_unjudged(_: Item, outcome: Outcome) -> Graded:
    """Score 0.5, as if no answer were better, until a judge has compared all answers."""
    return Graded(0.5, outcome.text.strip())


def grade_instruction(item: Item, outcome: Outcome) -> Graded:
    """Score 1 if the response passes every check of the prompt, else 0."""
    text = outcome.text.strip()
    return Graded(float(follows_instructions(text, item.checks)), text)
