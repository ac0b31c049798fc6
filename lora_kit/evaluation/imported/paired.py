"""Results of base and adapter as a ledger: the same items of the same tasks, and one suite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lora_kit.evaluation.imported.result import Result, TaskResults
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.scores import TaskKind
from lora_kit.evaluation.suite import Suite
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import EvaluationError

SUITE = "results"
ARMS = ("base", "adapter")
# Names in a message, of many.
SHOWN = 5
# Kind of a task whose scores have the meaning that the program gave them.
KINDS: Mapping[str, TaskKind] = {
    "lm-eval": "lm_eval",
    "inspect": "generation",
    "table": "generation",
}

# Results of both arms by task.
ByTask = Mapping[str, TaskResults]


def pair_results(base: ByTask, adapter: ByTask) -> list[tuple[TaskResults, TaskResults]]:
    """Return the results of both arms on each task.

    Raises:
        EvaluationError: naming the tasks or items that only one has, or that differ.
    """
    _require_same("tasks", list(base), list(adapter), base, adapter)
    pairs = [(base[name], adapter[name]) for name in base]
    for before, after in pairs:
        where = f"{before.path} and {after.path}: {before.name}"
        if (before.format, before.metric) != (after.format, after.metric):
            raise EvaluationError(
                f"{where}: not the same score (got {before.metric} of {before.format} and "
                f"{after.metric} of {after.format}). Fix: choose one with --metric"
            )
        _require_same("items", list(before.items), list(after.items), base, adapter, before.name)
        for identifier, one in before.items.items():
            _require_equal(one, after.items[identifier])
    return pairs


def _require_same(
    what: str,
    before: Sequence[str],
    after: Sequence[str],
    base: ByTask,
    adapter: ByTask,
    task: str | None = None,
) -> None:
    for arm, own, others, file in (
        ("base", before, after, adapter),
        ("adapter", after, before, base),
    ):
        only = sorted(set(own).difference(others))
        if only:
            paths = {str(file[task].path)} if task else {str(one.path) for one in file.values()}
            more = f" and {len(only) - SHOWN:,} more" if len(only) > SHOWN else ""
            raise EvaluationError(
                f"{', '.join(sorted(paths))}: lacks {len(only):,} {what} that the {arm} has (got "
                f"{', '.join(only[:SHOWN])}{more}). Fix: evaluate both on the same {what}"
            )


def _require_equal(before: Result, after: Result) -> None:
    others = {**after.asked, "cluster": after.cluster}
    for name, value in {**before.asked, "cluster": before.cluster}.items():
        if others.get(name, value) != value:
            raise EvaluationError(
                f"{after.origin}: {name}: the item is another one in the base's file (got "
                f"{_short(others[name])}, and {_short(value)} in {before.origin}). Fix: "
                "evaluate both with the same prompts, targets and template"
            )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def suite_of_results(
    pairs: Sequence[tuple[TaskResults, TaskResults]],
    margin: float | None,
    alpha: float,
    lower_is_better: bool,
) -> Suite:
    """Return the suite that judges results: of retention with a margin, else of gain.

    Args:
        pairs: results of both arms on each task.
        margin: largest tolerated loss, in the unit of the score.
        alpha: level of the test: one-sided with a margin, else two-sided.
        lower_is_better: direction of scores of which the files do not say it.

    Raises:
        EvaluationError: if the direction contradicts a file.
        pydantic.ValidationError: if margin or alpha are outside their range.
    """
    tasks = [
        {
            "name": before.name,
            "kind": KINDS[before.format],
            "source": before.name,
            "metric": before.metric,
            "lower_is_better": _direction(before, after, lower_is_better),
            "margin": margin,
        }
        for before, after in pairs
    ]
    files = " and ".join(dict.fromkeys(one.path.name for pair in pairs[:1] for one in pair))
    return Suite.model_validate(
        {
            "name": SUITE,
            "role": "gain" if margin is None else "retention",
            "description": f"Scores that another program measured: {files}"
            + (", and other files" if len(pairs) > 1 else ""),
            "alpha": alpha,
            "tasks": tasks,
        }
    )


def _direction(before: TaskResults, after: TaskResults, given: bool) -> bool:
    known = {one.lower_is_better for one in (before, after)} - {None}
    if not known:
        if not given:
            say(f"{before.name}: a higher {before.metric} is better, without --lower-is-better")
        return given
    if given and True not in known:
        raise EvaluationError(
            f"--lower-is-better: the results of {before.name} say that a higher {before.metric} is "
            "better (got true). Fix: leave the option out"
        )
    return True in known


def entries_of(suite: Suite, pairs: Sequence[tuple[TaskResults, TaskResults]]) -> Iterator[Entry]:
    """Yield the entries of a ledger, in order of tasks, arms and items."""
    for pair in pairs:
        for arm, results in zip(ARMS, pair, strict=True):
            for identifier in pair[0].items:
                yield _entry(arm, suite.name, results, results.items[identifier])


def _entry(arm: str, suite: str, results: TaskResults, one: Result) -> Entry:
    return Entry(
        arm=arm,
        suite=suite,
        task=results.name,
        item=one.id,
        cluster=one.cluster,
        score=one.score,
        output=one.output,
        prompt=one.prompt,
        reference=one.reference,
        tokens=0,
        seconds=0.0,
        measures=one.measures,
        log_likelihoods=one.log_likelihoods,
        choices=one.choices,
        answer=one.answer,
    )
