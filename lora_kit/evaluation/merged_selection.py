"""Selection of the merged model to release, if several were evaluated.

The model is selected on one half of the items and proved on the other: of two models with the same
score, the one that is lucky would be selected, and pass by its luck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lora_kit.evaluation.comparisons import compare, decide, task_score, texts_to_judge
from lora_kit.evaluation.ledger_view import LedgerView
from lora_kit.evaluation.pairs import Entries, has_score, pair
from lora_kit.evaluation.stopping import FIXED
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.task_verdict import MergedTask, TaskVerdict
from lora_kit.evaluation.verdict import MergedSelection, SuiteVerdict
from lora_kit.recipe.sections import MERGED_ARMS
from lora_kit.statistics.decisions import combine_decisions, holm
from lora_kit.statistics.halves import MIN_CLUSTERS, fewest_clusters, first_half
from lora_kit.statistics.looks import Look, Looks

RANK = {"PASS": 2, "INCONCLUSIVE": 1, "FAIL": 0}
SELECTION_ALPHA = 0.05
SELECTED_ON = "half A of the items (clusters of items, halved by a hash of their names)"
PROVED_ON = "half B, which the selection did not use"
# Judges the merged models of one task on some of its items.
JudgeTask = Callable[[Suite, TaskSpec], tuple[MergedTask, ...]]


def judge_merged(
    suite: Suite, task: TaskSpec, arms: Mapping[str, Entries], look: Look
) -> tuple[MergedTask, ...]:
    """Compare each merged model with the base and with the first merged model.

    Args:
        suite: suite of the task.
        task: the task.
        arms: entries of the arms, on the items that count.
        look: look whose level the comparisons with the base have.
    """
    where = f"{suite.name}/{task.name}"
    present = [arm for arm in MERGED_ARMS if arm in arms]
    judged = []
    for arm in present:
        pairs = pair(arms.get("base", {}), arms[arm], task, where)
        comparison = compare(pairs, task, look)
        decision = decide(pairs, comparison.decision, task)[0]
        lead = lead_p = None
        if arm != present[0]:
            with_first = pair(arms[present[0]], arms[arm], task, where)
            whole = Looks.fixed(suite.alpha / 2).look(1)
            leading = compare(with_first, task.model_copy(update={"margin": None}), whole)
            lead, lead_p = leading.interval, leading.p
        mean = task_score(pairs.after, task)
        judged.append(MergedTask(arm, decision, mean, comparison.interval, lead, lead_p))
    return tuple(judged)


def select_merged_model(
    view: LedgerView, suites: Sequence[Suite], judged: Sequence[SuiteVerdict]
) -> tuple[str | None, MergedSelection | None, tuple[SuiteVerdict, ...]]:
    """Select the merged model with the better verdict and add its decision to each task.

    Args:
        view: results of all arms.
        suites: the suites.
        judged: verdicts on the suites, with the merged models compared on all items.

    Returns:
        Arm of the selected model, `None` if no merged model is an arm; the selection, `None` unless
        several are arms; and the suites.
    """
    arms = _merged_arms(judged)
    if len(arms) < 2:
        ships = arms[0] if arms else None
        return ships, None, _with_proof(judged, judged, ships)
    clusters, scored = _clusters(view, suites)
    first = first_half(clusters)
    least = {name: fewest_clusters(names, first) for name, names in scored.items()}
    name = min(least, key=lambda name: least[name])
    if least[name] < MIN_CLUSTERS:
        reason = (
            f"{name} has {len(scored[name])} clusters of items with scores, "
            f"{least[name]} in one half, and a selection needs {MIN_CLUSTERS} in each"
        )
        means = _means(judged, arms[0])
        selection = MergedSelection("no items", "all items", reason, means)
        return arms[0], selection, _with_proof(judged, judged, arms[0])
    chosen, proved = (
        _on_items(judged, suites, _judge_half(view, first, is_first)) for is_first in (True, False)
    )
    ships = _best_arm(chosen, arms)
    selection = MergedSelection(SELECTED_ON, PROVED_ON, "", _means(proved, ships))
    return ships, selection, _with_proof(chosen, proved, ships)


def _merged_arms(judged: Sequence[SuiteVerdict]) -> list[str]:
    found = {merged.arm for suite in judged for task in suite.tasks for merged in task.merges}
    return [arm for arm in MERGED_ARMS if arm in found]


def _clusters(
    view: LedgerView, suites: Sequence[Suite]
) -> tuple[dict[str, list[str]], dict[str, set[str]]]:
    """Return the cluster of each item, and the clusters of items that all arms have a score on."""
    clusters, scored = {}, {}
    for suite in suites:
        for task in suite.tasks:
            name = f"{suite.name}/{task.name}"
            arms = view.arms(suite.name, task.name)
            base = arms.get("base", {})
            clusters[name] = [entry.cluster for entry in base.values()]
            merged = [arms[arm] for arm in MERGED_ARMS if arm in arms]
            if merged:
                scored[name] = {
                    entry.cluster
                    for item, entry in base.items()
                    if all(has_score(one[item]) for one in (base, *merged))
                }
    return clusters, scored


def _judge_half(view: LedgerView, first: frozenset[str], is_first: bool) -> JudgeTask:
    """Return a function that judges merged models on the items of one half."""

    def judge(suite: Suite, task: TaskSpec) -> tuple[MergedTask, ...]:
        arms = view.arms(suite.name, task.name, texts_to_judge(task))
        half = {
            arm: {k: entry for k, entry in entries.items() if (entry.cluster in first) == is_first}
            for arm, entries in arms.items()
            if arm in ("base", *MERGED_ARMS)
        }
        return judge_merged(suite, task, half, FIXED.plan(1, suite, task).look(1))

    return judge


def _on_items(
    judged: Sequence[SuiteVerdict], suites: Sequence[Suite], judge: JudgeTask
) -> tuple[SuiteVerdict, ...]:
    return tuple(
        replace(
            verdict,
            tasks=tuple(
                replace(task, merges=judge(suite, spec))
                for task, spec in zip(verdict.tasks, suite.tasks, strict=True)
            ),
        )
        for verdict, suite in zip(judged, suites, strict=True)
    )


def _best_arm(judged: Sequence[SuiteVerdict], arms: Sequence[str]) -> str:
    results = [merged for suite in judged for task in suite.tasks for merged in task.merges]
    first, *others = arms
    return next((arm for arm in others if _is_better(results, arm, first)), first)


def _rank(results: Sequence[MergedTask], arm: str) -> int:
    return RANK[combine_decisions([merged.decision for merged in results if merged.arm == arm])]


def _is_better(results: Sequence[MergedTask], arm: str, than: str) -> bool:
    """Return true if `arm` has the better decision, or is significantly better and never worse.

    With equal decisions, the paired difference has to be significant on at least one task after
    Holm over all tasks: one of two means is higher by chance.
    """
    of_arm = [merged for merged in results if merged.arm == arm]
    if len(of_arm) < len([merged for merged in results if merged.arm == than]):
        return False
    if _rank(results, arm) != _rank(results, than):
        return _rank(results, arm) > _rank(results, than)
    adjusted = holm([1.0 if merged.lead_p is None else merged.lead_p for merged in of_arm])
    leads = [
        merged.lead.delta
        for merged, p in zip(of_arm, adjusted, strict=True)
        if merged.lead and p <= SELECTION_ALPHA
    ]
    return bool(leads) and min(leads) > 0


def _means(proved: Sequence[SuiteVerdict], arm: str) -> dict[str, float]:
    return {
        f"{suite.suite}/{task.task}": merged.mean
        for suite in proved
        for task in suite.tasks
        for merged in task.merges
        if merged.arm == arm
    }


def _with_proof(
    judged: Sequence[SuiteVerdict], proved: Sequence[SuiteVerdict], arm: str | None
) -> tuple[SuiteVerdict, ...]:
    """Add the decision on one merged model, and its interval, to each task."""
    return tuple(
        replace(
            suite,
            tasks=tuple(
                _with_decision(task, of_proof, arm)
                for task, of_proof in zip(suite.tasks, proof.tasks, strict=True)
            ),
        )
        for suite, proof in zip(judged, proved, strict=True)
    )


def _with_decision(task: TaskVerdict, proof: TaskVerdict, arm: str | None) -> TaskVerdict:
    merged = next((one for one in proof.merges if one.arm == arm), None)
    if merged is None:
        return task
    return replace(task, merged=merged.decision, merged_interval=merged.interval)
