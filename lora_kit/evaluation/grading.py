"""What an outcome is worth: functions of an item and what an arm made of it."""

from __future__ import annotations

import importlib.metadata
import math
import random
from functools import partial
from pathlib import Path

import numpy as np
from scipy.special import logsumexp

from lora_kit.evaluation.item import ChoiceRequest, Grade, Graded, Item, LossRequest, Outcome
from lora_kit.evaluation.suite import TaskSpec
from lora_kit.metrics.instruction_checks import follows
from lora_kit.metrics.load import Metric, load_metric
from lora_kit.runtime.hashes import file_sha256

# Raise it when the same outcome can have another grade than before.
GRADING = "1"


def grading_code(spec: TaskSpec) -> str:
    """Digest of the code outside of this package that grades a task; empty where there is none."""
    if spec.kind == "lm_eval":
        source = Path(spec.source)
        described = file_sha256(source) if source.is_file() else spec.source
        return f"{importlib.metadata.version('lm_eval')}/{described}"
    if spec.metric is None or not Path(spec.metric).exists():
        return ""
    path = Path(spec.metric)
    files = [path] if path.is_file() else sorted(path.glob("*.py"))
    return "/".join(file_sha256(file) for file in files)


def grader(spec: TaskSpec) -> Grade:
    """How the outcomes of a task are graded.

    Raises:
        EvaluationError: if its metric cannot be loaded.
    """
    if spec.kind == "loss":
        return grade_loss
    if spec.kind == "instructions":
        return grade_instruction
    if spec.kind == "generation":
        assert spec.metric is not None  # the schema sees to it
        first_line = spec.scored_text == "first_line"
        return partial(grade_generation, metric=load_metric(spec.metric), first_line=first_line)
    return partial(grade_choice, score=spec.score or "accuracy")


def grade_class(item: Item, outcome: Outcome, *, score: str) -> Graded:
    """Right or wrong by the class that a head gives the largest probability.

    `loss` is the cross-entropy, in nats. Probabilities that are no numbers have no score.
    """
    assert item.answer is not None
    found = outcome.log_likelihoods
    if any(map(math.isnan, found)):
        return Graded(None, "")
    chosen = int(np.argmax(found))
    measures = {"accuracy": float(chosen == item.answer), "loss": -found[item.answer]}
    return Graded(measures.get(score, measures["accuracy"]), item.choices[chosen], measures)


def grade_reward(item: Item, outcome: Outcome, *, score: str) -> Graded:
    """Right or wrong by the choice that has the highest reward.

    `loss` is the cross-entropy of the right choice under the softmax of the rewards, in nats; of
    two choices that is -log sigmoid of their difference, the loss of the training. Of equal
    rewards a coin decides, the same one each time: the first choice may always be the right one.
    Rewards that are no numbers have no score.
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
    """Nats per supervised token, and bits per byte, which tokenizers do not change.

    Bytes are those of the supervised text; the likelihood includes the token that ends the turn,
    which has none.
    """
    assert isinstance(item.request, LossRequest)
    (total,) = outcome.log_likelihoods
    measures = {"nats": -total}
    if item.scored_bytes:
        measures["bits_per_byte"] = -total / math.log(2) / item.scored_bytes
    return Graded(-total / item.request.example.supervised, "", measures)


def grade_choice(item: Item, outcome: Outcome, *, score: str) -> Graded:
    """Right or wrong by the likelihood of the choices, over their bytes, and over their tokens.

    `loss` is the cross-entropy of the right choice among all, in nats: it moves where an answer
    does not flip. A choice whose likelihood is no number has no score.
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
    said = item.choices[best.get(score, best["accuracy"])]
    return Graded(measures.get(score, measures["accuracy"]), said, measures)


def grade_generation(item: Item, outcome: Outcome, *, metric: Metric, first_line: bool) -> Graded:
    """A metric of the generated text, or of its first line, against the references."""
    answer = said(outcome.text, first_line)
    return Graded(metric(answer, item.references), outcome.text.strip())


def said(text: str, first_line: bool) -> str:
    """What of a generated text is the answer."""
    text = text.strip()
    return text.partition("\n")[0] if first_line else text


def grade_instruction(item: Item, outcome: Outcome) -> Graded:
    """1 if every check of the prompt holds."""
    text = outcome.text.strip()
    return Graded(float(follows(text, item.checks)), text)
