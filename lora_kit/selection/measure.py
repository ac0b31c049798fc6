"""Score a backbone on a recipe's gain tasks without training: zero-shot, few-shot, linear probe."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lora_kit.backbone.load import Backbone
from lora_kit.data.labelled import classification_text
from lora_kit.data.rows import Row
from lora_kit.evaluation.arms.models import base_identity
from lora_kit.evaluation.assembly import result_parts
from lora_kit.evaluation.engine.arm import Arm, EvaluationContext, LoadedArms
from lora_kit.evaluation.engine.journal import Journal, Journals
from lora_kit.evaluation.engine.run import evaluate_models
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.questions import Question, read_labelled
from lora_kit.evaluation.task_spec import LABEL_TEMPLATE, TEMPLATE_FIELD, TaskSpec
from lora_kit.modeling.generation import stop_token_ids
from lora_kit.modeling.linear_probe import score_linear_probe
from lora_kit.recipe.sections import FEWSHOT
from lora_kit.runtime.errors import EvaluationError
from lora_kit.selection.record import MeanScore, TaskScore
from lora_kit.statistics.clusters import clustered_sample, robust_limits

BITS = "bits_per_byte"


def task_scores(
    backbone: Backbone, work: Sequence[Work], known: Sequence[Row], directory: Path, no_cache: bool
) -> tuple[TaskScore, ...]:
    """Score a backbone zero-shot, few-shot and by linear probes.

    Args:
        backbone: backbone without an adapter.
        work: tasks, with few-shot examples as a variant where they can be shown.
        known: training rows; a probe is trained on those with labels.
        directory: directory of the journals, from which an interrupted comparison resumes.
        no_cache: if true, ignore existing results.

    Raises:
        EvaluationError: if no item of a task has a finite score.
    """
    identity = base_identity(backbone)
    arms = (
        Arm("base", identity, lambda _: nullcontext(), cached=True),
        Arm(FEWSHOT, identity, lambda _: nullcontext(), cached=True),
    )
    model = LoadedArms(lambda: backbone.model, arms)
    parts = result_parts([model], work)
    journal = Journal(directory, 0)
    if no_cache:
        journal.discard()
    done = journal.done([part.key for part in parts])
    context = EvaluationContext(
        backbone.tokenizer, stop_token_ids(backbone), journal, done, no_cache
    )
    journal.open()
    evaluate_models([model], work, context)
    with closing(Journals(directory, [part.key for part in parts])) as journals:
        entries = {
            (part.suite, part.task, part.arm): tuple(journals.entries(part.key)) for part in parts
        }
    return tuple(_task_score(one, entries, backbone, known) for one in work)


def probe_scores(
    backbone: Backbone, work: Sequence[Work], known: Sequence[Row]
) -> tuple[TaskScore, ...]:
    """Score an encoder by linear probes only: its head is untrained.

    Args:
        backbone: encoder with an untrained head.
        work: classification tasks.
        known: training rows with labels.

    Raises:
        EvaluationError: if the rows have fewer than two classes.
    """
    scores = []
    for one in work:
        spec, probe = one.task.spec, _probe(one, backbone, known)
        if probe is None:
            classes = {row.label for row in known if row.label and row.messages}
            raise EvaluationError(
                f"{one.name}: an encoder is compared by a linear probe, which needs two classes "
                f"(got {len(classes)}). Fix: give training rows with labels of two classes or more"
            )
        scores.append(TaskScore(one.name, spec.unit, spec.higher_is_better, None, None, probe))
    return tuple(scores)


# Entries by suite, task and arm.
EntriesByArm = dict[tuple[str, str, str], tuple[Entry, ...]]


def _task_score(
    one: Work, entries: EntriesByArm, backbone: Backbone, known: Sequence[Row]
) -> TaskScore:
    spec, name = one.task.spec, one.suite.name
    few_shot = entries.get((name, spec.name, FEWSHOT))
    zero_shot = _mean_score(entries[name, spec.name, "base"], spec)
    if zero_shot is None:
        raise EvaluationError(
            f"{one.name}: no item has a finite score (got {len(one.task.items)} items). Fix: set "
            "backbone.dtype to float32"
        )
    return TaskScore(
        one.name,
        "bits/byte" if spec.kind == "loss" else spec.unit,
        spec.higher_is_better,
        zero_shot,
        _mean_score(few_shot, spec) if few_shot else None,
        _probe(one, backbone, known) if spec.kind == "classification" else None,
    )


def _mean_score(entries: Sequence[Entry], spec: TaskSpec) -> MeanScore | None:
    """Return the mean over the items; `None` if no item has a finite score."""
    values = [e.measures.get(BITS) if spec.kind == "loss" else e.score for e in entries]
    scored = [
        (v, e.cluster or e.item)
        for v, e in zip(values, entries, strict=True)
        if v is not None and math.isfinite(v)
    ]
    if not scored:
        return None
    return _with_interval(np.array([v for v, _ in scored]), [cluster for _, cluster in scored])


def _with_interval(values: NDArray[np.float64], clusters: Sequence[str]) -> MeanScore:
    sample = clustered_sample(values, clusters)
    return MeanScore(sample.delta, *robust_limits(sample, 0.95))


def _probe(one: Work, backbone: Backbone, known: Sequence[Row]) -> MeanScore | None:
    """Score a linear probe; `None` if the training rows have fewer than two classes."""
    spec = one.task.spec
    rows = [row for row in known if row.label and row.messages]
    if len({row.label for row in rows}) < 2:
        return None
    labelled = [(classification_text(row), str(row.label)) for row in rows]
    questions = {question.id: question for question in read_labelled(spec)}
    tested = [questions[item.id] for item in one.task.items]
    texts = [(_text(question, spec), question.choices[question.answer]) for question in tested]
    clusters = [row.cluster for row in rows]
    correct = score_linear_probe(backbone, labelled, texts, spec.max_length, clusters)
    return _with_interval(correct, [question.cluster or question.id for question in tested])


def _text(question: Question, spec: TaskSpec) -> str:
    """Return the text as in training rows, without the words of the task's template."""
    if "text" in question.fields:
        return question.fields["text"]
    fields = re.findall(TEMPLATE_FIELD, spec.template or LABEL_TEMPLATE)
    return "\n".join(question.fields[name] for name in dict.fromkeys(fields))
