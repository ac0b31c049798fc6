"""One backbone on a recipe's gain tasks: zero-shot, few-shot, linear probe."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lora_kit.backbone.load import Backbone
from lora_kit.data.rows import Row
from lora_kit.evaluation.arms.models import base_identity
from lora_kit.evaluation.assembly import parts_of
from lora_kit.evaluation.engine.arm import Arm, EvaluationContext, LoadedArms
from lora_kit.evaluation.engine.journal import Journal, Journals
from lora_kit.evaluation.engine.run import evaluate_models
from lora_kit.evaluation.engine.work import FEWSHOT, Work
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.reading import Question, read_labelled
from lora_kit.evaluation.suite import FIELD, TEXT, TaskSpec
from lora_kit.modeling.generation import stop_token_ids
from lora_kit.modeling.linear_probe import probed
from lora_kit.runtime.errors import EvaluationError
from lora_kit.selection.record import Level, TaskScore
from lora_kit.statistics.clusters import robust_limits, sample

BITS = "bits_per_byte"


def task_scores(
    backbone: Backbone, work: Sequence[Work], known: Sequence[Row], directory: Path, no_cache: bool
) -> tuple[TaskScore, ...]:
    """How a backbone does on tasks, as it is.

    Args:
        backbone: no adapter is attached to its model.
        work: the tasks, with examples as a variant where they can be shown.
        known: training rows; those with labels are what a probe learns from.
        directory: where journals go, so that a scouting that was killed goes on.
        fresh: whether what was measured before is measured again.

    Raises:
        EvaluationError: if of a task no item has a score.
    """
    identity = base_identity(backbone)
    arms = (
        Arm("base", identity, lambda _: nullcontext(), kept=True),
        Arm(FEWSHOT, identity, lambda _: nullcontext(), kept=True),
    )
    model = LoadedArms(lambda: backbone.model, arms)
    parts = parts_of([model], work)
    journal = Journal(directory, 0)
    if no_cache:
        journal.discard()
    done = journal.done([part.key for part in parts])
    bench = EvaluationContext(backbone.tokenizer, stop_token_ids(backbone), journal, done, no_cache)
    journal.open()
    evaluate_models([model], work, bench)
    with closing(Journals(directory, [part.key for part in parts])) as journals:
        found = {
            (part.suite, part.task, part.arm): tuple(journals.entries(part.key)) for part in parts
        }
    return tuple(_task_score(one, found, backbone, known) for one in work)


def probe_scores(
    backbone: Backbone, work: Sequence[Work], known: Sequence[Row]
) -> tuple[TaskScore, ...]:
    """How a logistic regression does on the features of a backbone that says nothing.

    Args:
        backbone: an encoder, with an untrained head.
        work: the tasks, of classification.
        known: training rows, with labels.

    Raises:
        EvaluationError: if the rows are all of one class.
    """
    found = []
    for one in work:
        spec, probe = one.task.spec, _probe(one, backbone, known)
        if probe is None:
            raise EvaluationError(
                f"{one.name}: an encoder is compared by a linear probe alone, which takes training "
                "rows of two classes"
            )
        found.append(TaskScore(one.name, spec.unit, spec.higher_is_better, None, None, probe))
    return tuple(found)


Found = dict[tuple[str, str, str], tuple[Entry, ...]]


def _task_score(one: Work, found: Found, backbone: Backbone, known: Sequence[Row]) -> TaskScore:
    spec, name = one.task.spec, one.suite.name
    few = found.get((name, spec.name, FEWSHOT))
    zero_shot = _level(found[name, spec.name, "base"], spec)
    if zero_shot is None:
        raise EvaluationError(
            f"{one.name}: of none of the {len(one.task.items)} items there is a finite score, so "
            "that this backbone cannot be compared; load it in float32 (backbone.dtype)"
        )
    return TaskScore(
        one.name,
        "bits/byte" if spec.kind == "loss" else spec.unit,
        spec.higher_is_better,
        zero_shot,
        _level(few, spec) if few else None,
        _probe(one, backbone, known) if spec.kind == "classification" else None,
    )


def _level(entries: Sequence[Entry], spec: TaskSpec) -> Level | None:
    """`None` where no item has a score: one that overflowed is no number."""
    values = [e.measures.get(BITS) if spec.kind == "loss" else e.score for e in entries]
    scored = [
        (v, e.cluster or e.item)
        for v, e in zip(values, entries, strict=True)
        if v is not None and math.isfinite(v)
    ]
    if not scored:
        return None
    return _mean(np.array([value for value, _ in scored]), [cluster for _, cluster in scored])


def _mean(values: NDArray[np.float64], clusters: Sequence[str]) -> Level:
    found = sample(values, clusters)
    return Level(found.delta, *robust_limits(found, 0.95))


def _probe(one: Work, backbone: Backbone, known: Sequence[Row]) -> Level | None:
    """`None` where no training rows say what is what, or only one thing."""
    spec = one.task.spec
    rows = [row for row in known if row.label and row.messages]
    labelled = [(row.messages[0].content, str(row.label)) for row in rows]
    questions = {question.id: question for question in read_labelled(spec)}
    asked = [questions[item.id] for item in one.task.items]
    if len({label for _, label in labelled}) < 2:
        return None
    texts = [(_text(question, spec), question.choices[question.answer]) for question in asked]
    clusters = [row.cluster for row in rows]
    right = probed(backbone, labelled, texts, spec.max_length, clusters)
    return _mean(right, [question.cluster or question.id for question in asked])


def _text(question: Question, spec: TaskSpec) -> str:
    """The text as training rows have it: without what the task's template says around it."""
    if "text" in question.fields:
        return question.fields["text"]
    named = re.findall(FIELD, spec.template or TEXT)
    return "\n".join(question.fields[name] for name in dict.fromkeys(named))
