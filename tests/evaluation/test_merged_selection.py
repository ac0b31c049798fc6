"""Selection of a merged model on one half of the items, and its proof on the other half."""

import json
import math

import numpy as np
import pytest

from lora_kit.evaluation.merged_selection import judge_merged
from lora_kit.evaluation.stopping import FIXED
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict import Verdict
from lora_kit.statistics.halves import first_half
from tests.evaluation.in_memory import (
    RETENTION,
    InMemoryLedger,
    arm,
    entries,
    judge,
    ledger,
    one_task,
)


def test_the_merged_model_is_judged_as_the_adapter_is() -> None:
    right, wrong = [1.0] * 300, [0.0] * 100 + [1.0] * 200
    entries = arm("base", right) + arm("adapter", right) + arm("merged", wrong)
    verdict = judge(entries, [one_task("retention")])
    assert (verdict.decision, verdict.merged) == ("PASS", "FAIL")
    assert judge(entries[:600], [one_task("retention")]).merged is None


def test_of_two_merged_models_the_better_one_ships() -> None:
    right, wrong = [1.0] * 300, [0.0] * 100 + [1.0] * 200
    both = arm("base", right) + arm("adapter", right)

    def verdict(first: list[float], second: list[float]) -> tuple[str | None, str | None]:
        arms = arm("merged", first) + arm("merged-original", second)
        found = judge([*both, *arms], [one_task("retention")])
        assert [m.arm for m in found.suites[0].tasks[0].merges] == ["merged", "merged-original"]
        return found.ships, found.merged

    assert verdict(right, right) == ("merged", "PASS")
    assert verdict(wrong, right) == ("merged-original", "PASS")
    assert verdict(right, wrong) == ("merged", "PASS")
    assert judge(both, [one_task("retention")]).ships is None


def test_of_two_merged_models_that_pass_the_one_that_gains_more_ships() -> None:
    base, some, more = [0.0] * 100, [1.0] * 60 + [0.0] * 40, [1.0] * 90 + [0.0] * 10
    arms = arm("merged", some) + arm("merged-original", more)
    verdict = judge([*arm("base", base), *arm("adapter", more), *arms], [one_task("gain")])
    assert (verdict.ships, verdict.merged) == ("merged-original", "PASS")
    task = verdict.suites[0].tasks[0]
    assert task.merged_interval is not None
    assert (task.merged_interval.items, task.merges[1].interval.items) == (50, 50)


def test_merged_models_are_compared_item_by_item() -> None:
    """Intervals against the base overlap although the paired difference is significant."""
    base, some = [0.0] * 200, [1.0] * 120 + [0.0] * 80
    more = [1.0] * 130 + [0.0] * 70
    entries = [*arm("base", base), *arm("adapter", more), *arm("merged", some)]
    verdict = judge([*entries, *arm("merged-original", more)], [one_task("gain")])
    first, second = verdict.suites[0].tasks[0].merges
    assert second.interval.low < first.interval.delta
    assert (first.lead, first.lead_p) == (None, None)
    assert second.lead is not None
    assert second.lead.low > 0
    assert verdict.ships == "merged-original"
    by_chance = [1.0] * 122 + [0.0] * 78
    assert judge([*entries, *arm("merged-original", by_chance)], [one_task("gain")]).ships == (
        "merged"
    )


def test_a_merged_model_that_is_worse_somewhere_for_sure_does_not_replace_the_first() -> None:
    right, losing, prose = [1.0] * 1200, [0.0] * 20 + [1.0] * 1180, [2.9, 2.8] * 50
    better = [score - 0.3 for score in prose]

    def ships(quiz: list[float]) -> str | None:
        arms = [*entries("quiz", "merged", right), *entries("prose", "merged", prose)]
        arms += entries("quiz", "merged-original", quiz)
        arms += entries("prose", "merged-original", better)
        verdict = judge([*ledger(right, prose), *arms], [RETENTION])
        assert verdict.merged == "PASS"
        return verdict.ships

    assert ships(right) == "merged-original"
    assert ships(losing) == "merged"


def two_merges(first: list[float], second: list[float], suite: Suite) -> Verdict:
    base = arm("base", [0.0] * len(first)) + arm("adapter", [1.0] * len(first))
    return judge([*base, *arm("merged", first), *arm("merged-original", second)], [suite])


def test_a_merged_model_is_selected_on_one_half_and_proved_on_the_other() -> None:
    names = [f"c{n}" for n in range(200)]
    first = first_half({"keep/quiz": names})
    # Right on all that selects and wrong on all that proves.
    lucky = [1.0 if name in first else 0.0 for name in names]
    verdict = two_merges([0.0] * 200, lucky, one_task("gain"))
    assert (verdict.ships, verdict.merged) == ("merged-original", "INCONCLUSIVE")
    task = verdict.suites[0].tasks[0]
    assert task.merged_interval is not None
    assert (task.merged_interval.delta, task.merges[1].interval.delta) == (0.0, 1.0)
    assert (task.merged_interval.items, task.merges[1].interval.items) == (100, 100)
    assert verdict.selection is not None
    assert verdict.selection.means == {"keep/quiz": 0.0}
    assert verdict.selection_sentence == (
        "Of several merged models, merged-original was selected on half A of the items (clusters "
        "of items, halved by a hash of their names) and proved on half B, which the selection did "
        "not use."
    )
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict


@pytest.mark.parametrize(("items", "is_selected"), [(9, False), (10, True)])
def test_with_few_clusters_the_first_merged_model_ships_and_the_verdict_says_so(
    items: int, is_selected: bool
) -> None:
    verdict = two_merges([0.0] * items, [1.0] * items, one_task("gain"))
    task = verdict.suites[0].tasks[0]
    assert task.merged_interval is not None
    assert verdict.selection is not None
    if is_selected:
        assert verdict.selection.reason == ""
        assert task.merged_interval.items == 5
        return
    assert verdict.ships == "merged"
    assert task.merged_interval == task.merges[0].interval
    assert task.merged_interval.items == 9
    assert verdict.selection_sentence == (
        "Of several merged models, merged, the first, is released without a selection, and proved "
        "on all items: keep/quiz has 9 clusters of items with scores, 4 in one half, and a "
        "selection needs 5 in each."
    )


def test_clusters_without_a_score_do_not_count_for_a_selection() -> None:
    scores = [1.0] * 9 + [math.nan] * 20
    verdict = two_merges(scores, scores, one_task("gain"))
    assert verdict.selection is not None
    assert "has 9 clusters of items with scores" in verdict.selection.reason


def test_one_merged_model_is_proved_on_all_items() -> None:
    entries = arm("base", [0.0] * 50) + arm("adapter", [1.0] * 50) + arm("merged", [1.0] * 50)
    verdict = judge(entries, [one_task("gain")])
    assert verdict.selection is None
    assert verdict.selection_sentence == ""
    task = verdict.suites[0].tasks[0]
    assert task.merged_interval == task.merges[0].interval
    assert task.merged_interval.items == 50


def test_the_selected_merged_model_passes_no_more_often_than_the_level() -> None:
    """The luckier of two models that gain nothing is selected, and has to pass anew.

    Judged on all items, one of the two passes more often than the level.
    """
    suite = Suite.model_validate(
        {
            "name": "keep",
            "role": "gain",
            "alpha": 0.2,
            "tasks": [{"name": "quiz", "kind": "generation", "metric": "f", "source": "x"}],
        }
    )
    generator, draws = np.random.default_rng(0), 250
    names = ("merged", "merged-original")
    selected = lucky = 0
    for _ in range(draws):
        entries = arm("base", [0.0] * 60) + arm("adapter", [1.0] * 60)
        for name in names:
            entries += arm(name, generator.normal(0, 1, 60).tolist())
        selected += judge(entries, [suite]).merged == "PASS"
        arms = InMemoryLedger(entries).arms("keep", "quiz")
        merges = judge_merged(
            suite, suite.tasks[0], arms, FIXED.plan(60, suite, suite.tasks[0]).look(1)
        )
        lucky += any(one.decision == "PASS" for one in merges)
    # Two-sided: one in two errors is a false gain.
    assert selected / draws <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / draws)
    assert lucky / draws > 0.1 + 3 * math.sqrt(0.1 * 0.9 / draws)
