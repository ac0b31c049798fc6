"""Grading with the filters and metrics of lm-evaluation-harness, item by item."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_kit.evaluation.item import Graded, Item, Outcome
from lora_kit.evaluation.lm_eval.source import explain_errors, lm_eval_environment
from lora_kit.evaluation.requests import ChoiceRequest
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.runtime.errors import EvaluationError

# Needs the likelihood of each choice without its question, which is not computed here.
MUTUAL_INFORMATION = "acc_mutual_info"
# Aggregations under which the score of a task is the mean of its items' scores.
MEANS = ("mean", "nanmean")


@dataclass(frozen=True)
class ScoreMetric:
    """Metric used as the score, and the filter of the task that precedes the metric."""

    metric: str
    filter: str

    def key(self, task: Any) -> str:
        """Return the name of the metric among the measures of an item."""
        return _key(task, self.metric, self.filter)


def resolve_score_metric(spec: TaskSpec, tasks: Mapping[str, Any]) -> ScoreMetric:
    """Return the metric that the task names, or the first one; the same for a complete group.

    Raises:
        EvaluationError: if a task lacks the metric or the filter, the metric is not a mean over
            items, or `lower_is_better` is wrong.
    """
    place = f"task {spec.name}: metric"
    name, _, chosen = (spec.metric or "").partition(",")
    for source, task in tasks.items():
        # Without unconditional likelihoods, the metric cannot be computed.
        getattr(task, "_metric_fn_list", {}).pop(MUTUAL_INFORMATION, None)
        aggregations = {k: v for k, v in task.aggregation().items() if k != MUTUAL_INFORMATION}
        means = [k for k, v in aggregations.items() if getattr(v, "__name__", "") in MEANS]
        filters = [ensemble.name for ensemble in task._filters]
        name, chosen = name or next(iter(aggregations), ""), chosen or filters[0]
        fix = f"Fix: use {', '.join(means)}" if means else "Fix: use another task"
        if name not in aggregations:
            raise EvaluationError(f"{place}: unknown for {source} (got {name!r}). {fix}")
        if name not in means:
            raise EvaluationError(
                f"{place}: not a mean of item scores in {source}, so items cannot be compared (got "
                f"{name!r}). {fix}"
            )
        if chosen not in filters:
            raise EvaluationError(
                f"{place}: unknown filter of {source} (got {chosen!r}). Fix: use "
                f"{', '.join(filters)}"
            )
        _check_direction(spec, name, task.higher_is_better().get(name))
    return ScoreMetric(name, chosen)


def _check_direction(spec: TaskSpec, name: str, higher_is_better: bool | None) -> None:
    if higher_is_better is not None and higher_is_better == spec.lower_is_better:
        better, fix = ("higher", "false") if higher_is_better else ("lower", "true")
        raise EvaluationError(
            f"task {spec.name}: lower_is_better: a {better} value of {name} is better (got "
            f"{str(spec.lower_is_better).lower()}). Fix: write `lower_is_better: {fix}`"
        )


def grade_lm_eval(
    item: Item, outcome: Outcome, *, tasks: Mapping[str, Any], measure: ScoreMetric
) -> Graded:
    """Grade an outcome with the filters and metrics of its lm-eval task.

    Raises:
        EvaluationError: if the task fails, or does not return the metric.
    """
    instances = item.document
    task = tasks[instances[0].task_name]
    with explain_errors(item.id), lm_eval_environment():
        measures = _measures(task, _answered(instances, item, outcome))
    key = measure.key(task)
    if key not in measures:
        raise EvaluationError(
            f"{item.id}: lm-eval returned no {key} (got {', '.join(measures)}). Fix: use another "
            "metric"
        )
    score = measures[key]
    others = {name: v for name, v in measures.items() if name != key and np.isfinite(v)}
    output = outcome.text
    if item.choices:
        output = most_likely(item.choices, outcome.log_likelihoods, measure.metric)
    return Graded(float(score) if np.isfinite(score) else None, output, others)


def _answered(instances: Sequence[Any], item: Item, outcome: Outcome) -> list[Any]:
    """Return copies of the instances that hold the responses of the model."""
    responses: list[Any]
    if isinstance(item.request, ChoiceRequest):
        responses = list(zip(outcome.log_likelihoods, outcome.greedy, strict=True))
    else:
        responses = [outcome.text]
    copies = [copy.copy(instance) for instance in instances]
    for instance, response in zip(copies, responses, strict=True):
        instance.resps, instance.filtered_resps = [response] * instance.repeats, {}
    return copies


def _measures(task: Any, instances: Sequence[Any]) -> dict[str, float]:
    """Return all numeric metrics of one document, after each filter of the task."""
    measures = {}
    for ensemble in task._filters:
        ensemble.apply(instances)
        responses = [instance.filtered_resps[ensemble.name] for instance in instances]
        for metric, value in task.process_results(instances[0].doc, responses).items():
            if np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf":
                measures[_key(task, metric, ensemble.name)] = float(value)
    return measures


def _key(task: Any, metric: str, filter_name: str) -> str:
    """Return lm-eval's name of a metric: `metric`, or `metric,filter` with several filters."""
    return metric if len(task._filters) == 1 else f"{metric},{filter_name}"


def most_likely(choices: Sequence[str], log_likelihoods: Sequence[float], metric: str) -> str:
    """Return the choice that a metric of lm-eval takes as the answer."""
    likelihoods = np.array(log_likelihoods)
    if metric == "acc_norm":
        likelihoods /= [max(len(choice), 1) for choice in choices]
    elif metric == "acc_bytes":
        likelihoods /= [max(len(choice.encode()), 1) for choice in choices]
    return choices[int(np.argmax(likelihoods))]
