"""What lm-evaluation-harness says of an outcome: its own filters and metrics, item by item."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_kit.evaluation.item import ChoiceRequest, Graded, Item, Outcome
from lora_kit.evaluation.lm_eval.source import as_lm_eval_runs, explained
from lora_kit.evaluation.suite import TaskSpec
from lora_kit.runtime.errors import EvaluationError

# Its choices are asked for once more without the question, in contexts that share no token with it.
MUTUAL_INFORMATION = "acc_mutual_info"
# Aggregations under which the score of a task is the mean of its items' scores.
MEANS = ("mean", "nanmean")


@dataclass(frozen=True)
class Measure:
    """The metric that is the score, after one of the task's filters."""

    metric: str
    filter: str

    def key(self, task: Any) -> str:
        """Its name among the measures of an item."""
        return _key(task, self.metric, self.filter)


def resolve_measure(spec: TaskSpec, tasks: Mapping[str, Any]) -> Measure:
    """The metric that `spec` names, or the first one; the same in all tasks of a group."""
    place = f"task {spec.name}: metric"
    name, _, chosen = (spec.metric or "").partition(",")
    for source, task in tasks.items():
        # The unconditional likelihoods are not taken, so the metric is not computed either.
        getattr(task, "_metric_fn_list", {}).pop(MUTUAL_INFORMATION, None)
        aggregations = {k: v for k, v in task.aggregation().items() if k != MUTUAL_INFORMATION}
        means = [k for k, v in aggregations.items() if getattr(v, "__name__", "") in MEANS]
        filters = [ensemble.name for ensemble in task._filters]
        name, chosen = name or next(iter(aggregations), ""), chosen or filters[0]
        possible = f"possible is {', '.join(means) or 'none'}"
        if name not in aggregations:
            raise EvaluationError(f"{place}: {source} has no metric {name!r}; {possible}")
        if name not in means:
            raise EvaluationError(
                f"{place}: {name} of {source} is not the mean of its items' scores, so that items "
                f"cannot be compared by it; {possible}"
            )
        if chosen not in filters:
            raise EvaluationError(
                f"{place}: {source} has no filter {chosen!r}; it has {', '.join(filters)}"
            )
        _check_direction(spec, name, task.higher_is_better().get(name))
    return Measure(name, chosen)


def _check_direction(spec: TaskSpec, name: str, higher_is_better: bool | None) -> None:
    if higher_is_better is False and not spec.lower_is_better:
        raise EvaluationError(
            f"task {spec.name}: of {name}, a lower value is better; write `lower_is_better: true`"
        )
    if higher_is_better is True and spec.lower_is_better:
        raise EvaluationError(
            f"task {spec.name}: of {name}, a higher value is better; write `lower_is_better: false`"
        )


def grade(item: Item, outcome: Outcome, *, tasks: Mapping[str, Any], measure: Measure) -> Graded:
    """What lm-eval's own filters and metrics say of an outcome."""
    instances = item.document
    task = tasks[instances[0].task_name]
    with explained(item.id), as_lm_eval_runs():
        measures = _measures(task, _answered(instances, item, outcome))
    key = measure.key(task)
    if key not in measures:
        raise EvaluationError(f"{item.id}: lm-eval gave no {key}; it gave {', '.join(measures)}")
    score = measures[key]
    finite = {name: value for name, value in measures.items() if np.isfinite(value)}
    output = _chosen_text(item, outcome, measure.metric)
    return Graded(float(score) if np.isfinite(score) else None, output, finite)


def _answered(instances: Sequence[Any], item: Item, outcome: Outcome) -> list[Any]:
    """Copies of the instances that hold the model's responses."""
    responses: list[Any]
    if isinstance(item.request, ChoiceRequest):
        responses = list(zip(outcome.log_likelihoods, outcome.greedy, strict=True))
    else:
        responses = [outcome.text]
        for stop in getattr(item.request, "stop", ()):
            # As lm-eval cuts it; a text that ends before its stops stays as it is.
            responses = [responses[0].split(stop)[0]]
    copies = [copy.copy(instance) for instance in instances]
    for instance, response in zip(copies, responses, strict=True):
        instance.resps, instance.filtered_resps = [response] * instance.repeats, {}
    return copies


def _measures(task: Any, instances: Sequence[Any]) -> dict[str, float]:
    """All metrics of one document that are numbers, after each of the task's filters."""
    measures = {}
    for ensemble in task._filters:
        ensemble.apply(instances)
        responses = [instance.filtered_resps[ensemble.name] for instance in instances]
        for metric, value in task.process_results(instances[0].doc, responses).items():
            if np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf":
                measures[_key(task, metric, ensemble.name)] = float(value)
    return measures


def _key(task: Any, metric: str, filter_name: str) -> str:
    """lm-eval's name of a metric, such as `exact_match,strict-match`; short with one filter."""
    return metric if len(task._filters) == 1 else f"{metric},{filter_name}"


def _chosen_text(item: Item, outcome: Outcome, metric: str) -> str:
    """The choice that the metric takes for the model's, or what was generated."""
    if not item.choices:
        return outcome.text
    likelihoods = np.array(outcome.log_likelihoods)
    if metric == "acc_norm":
        likelihoods /= [max(len(choice), 1) for choice in item.choices]
    elif metric == "acc_bytes":
        likelihoods /= [max(len(choice.encode()), 1) for choice in item.choices]
    return item.choices[int(np.argmax(likelihoods))]
