"""Which of several merged models ships: the one with the better verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lora_kit.evaluation.verdict import MergedTask, SuiteVerdict
from lora_kit.recipe.sections import MERGED_ARMS
from lora_kit.statistics.decisions import combined, holm

RANK = {"PASS": 2, "INCONCLUSIVE": 1, "FAIL": 0}
SHIPPING_ALPHA = 0.05


def shipping(suites: Sequence[SuiteVerdict]) -> tuple[str | None, tuple[SuiteVerdict, ...]]:
    """Choose, and put the chosen one's decision beside the adapter's.

    Returns:
        The arm, `None` where no merged model is one; and the suites.
    """
    found = [merged for suite in suites for task in suite.tasks for merged in task.merges]
    arms = [arm for arm in MERGED_ARMS if any(merged.arm == arm for merged in found)]
    if not arms:
        return None, tuple(suites)
    first, *others = arms
    chosen = next((arm for arm in others if _is_better(found, arm, first)), first)
    return chosen, tuple(_with(suite, chosen) for suite in suites)


def _rank(found: Sequence[MergedTask], arm: str) -> int:
    return RANK[combined([merged.decision for merged in found if merged.arm == arm])]


def _is_better(found: Sequence[MergedTask], arm: str, than: str) -> bool:
    """Whether it passes where the first one does not, or is better for sure and nowhere worse.

    For sure on at least one task, item by item, after Holm over all tasks: the higher of two means
    is so by chance half the time.
    """
    of_arm = [merged for merged in found if merged.arm == arm]
    if len(of_arm) < len([merged for merged in found if merged.arm == than]):
        return False
    if _rank(found, arm) != _rank(found, than):
        return _rank(found, arm) > _rank(found, than)
    adjusted = holm([1.0 if merged.lead_p is None else merged.lead_p for merged in of_arm])
    leads = [
        merged.lead.delta
        for merged, p in zip(of_arm, adjusted, strict=True)
        if merged.lead and p <= SHIPPING_ALPHA
    ]
    return bool(leads) and min(leads) > 0


def _with(suite: SuiteVerdict, arm: str) -> SuiteVerdict:
    tasks = []
    for task in suite.tasks:
        merged = next((m for m in task.merges if m.arm == arm), None)
        if merged is not None:
            task = replace(task, merged=merged.decision, merged_interval=merged.interval)
        tasks.append(task)
    return replace(suite, tasks=tuple(tasks))
