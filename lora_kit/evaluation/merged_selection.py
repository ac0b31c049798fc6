"""Selection of the merged model to release, if several were evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lora_kit.evaluation.verdict import MergedTask, SuiteVerdict
from lora_kit.recipe.sections import MERGED_ARMS
from lora_kit.statistics.decisions import combine_decisions, holm

RANK = {"PASS": 2, "INCONCLUSIVE": 1, "FAIL": 0}
SELECTION_ALPHA = 0.05


def select_merged_arm(
    suites: Sequence[SuiteVerdict],
) -> tuple[str | None, tuple[SuiteVerdict, ...]]:
    """Select the merged model with the better verdict and add its decision to each task.

    Returns:
        Arm of the selected model, `None` if no merged model is an arm; and the suites.
    """
    results = [merged for suite in suites for task in suite.tasks for merged in task.merges]
    arms = [arm for arm in MERGED_ARMS if any(merged.arm == arm for merged in results)]
    if not arms:
        return None, tuple(suites)
    first, *others = arms
    chosen = next((arm for arm in others if _is_better(results, arm, first)), first)
    return chosen, tuple(_with_merged_decision(suite, chosen) for suite in suites)


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


def _with_merged_decision(suite: SuiteVerdict, arm: str) -> SuiteVerdict:
    tasks = []
    for task in suite.tasks:
        merged = next((m for m in task.merges if m.arm == arm), None)
        if merged is not None:
            task = replace(task, merged=merged.decision, merged_interval=merged.interval)
        tasks.append(task)
    return replace(suite, tasks=tuple(tasks))
