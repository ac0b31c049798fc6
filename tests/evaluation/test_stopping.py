"""Sequential stopping: where a task ends by its results, and what `verify` refuses."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_kit.evaluation.assembly import LEDGER, VERDICT
from lora_kit.evaluation.comparisons import items_to_decide
from lora_kit.evaluation.judge import judge
from lora_kit.evaluation.ledger import Entry, write_ledger
from lora_kit.evaluation.stopping import (
    LookPlan,
    PlannedTask,
    Stopping,
    adapter_end,
    look_of_place,
    merged_end,
    require_path,
    until_look,
)
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_verdict import TaskLooks, TaskVerdict
from lora_kit.evaluation.verdict_file import SUITES, check_verdict
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import write_json
from lora_kit.statistics import decisions
from lora_kit.statistics.decisions import paired_interval
from lora_kit.statistics.looks import Looks, ordered_clusters
from tests.evaluation.in_memory import InMemoryLedger, one_task

ITEMS = 400
STOPPING = Stopping(looks=5)
KEEP = one_task("retention")
LOOKS = STOPPING.plan(ITEMS, KEEP, KEEP.tasks[0])
PLAN = LookPlan(STOPPING, {"keep/quiz": PlannedTask(ITEMS, LOOKS.ends)})
FIXED_PLAN = LookPlan(Stopping(1), {"keep/quiz": PlannedTask(ITEMS, (ITEMS,))})


def answers(arm: str, scores: Sequence[float], until: int = 5) -> dict[str, Entry]:
    """Return an arm's entries in the drawn order, those of the first looks."""
    order = ordered_clusters([f"c{n}" for n in range(ITEMS)], KEEP.seed, "keep/quiz")
    found = {}
    for place, (cluster, score) in enumerate(zip(order, scores, strict=True)):
        item, look = f"i{cluster}", look_of_place(place, LOOKS)
        entry = Entry(arm, "keep", "quiz", item, cluster, score, "o", "p", "r", 1, 0.1, look=look)
        found[item] = entry
    return until_look(found, until)


def lost(share: float, until: int = 5, arm: str = "adapter") -> dict[str, Entry]:
    """Return entries that lose a share of the items, evenly over the order."""
    scores = [float(int((n + 1) * share) == int(n * share)) for n in range(ITEMS)]
    return answers(arm, scores, until)


def base(until: int = 5) -> dict[str, Entry]:
    return answers("base", [1.0] * ITEMS, until)


@pytest.mark.parametrize(
    ("share", "look", "reason", "decision"),
    [
        (0.0, 2, "decided", "PASS"),
        (0.02, 2, "decided", "PASS"),
        (0.1, 3, "futile", "INCONCLUSIVE"),
        (0.3, 1, "decided", "FAIL"),
        (0.16, 3, "decided", "FAIL"),
    ],
)
def test_a_task_ends_where_it_is_decided(
    share: float, look: int, reason: str, decision: str
) -> None:
    end = adapter_end({"base": base(), "adapter": lost(share)}, KEEP, KEEP.tasks[0], LOOKS)
    assert (end.look.number, end.reason, end.decision) == (look, reason, decision)
    assert len(end.pairs.before) == LOOKS.ends[look - 1]
    # Computed at the look's level, so that all looks together have the suite's.
    assert end.comparison.interval.confidence == 0.9
    interval = end.comparison.interval
    pairs, nominal = end.pairs, 1 - 2 * LOOKS.levels[look - 1]
    found = paired_interval(pairs.differences, pairs.clusters, nominal, True)
    assert (interval.low, interval.high) == pytest.approx((found.low, found.high), abs=0.02)


def test_a_task_that_was_given_up_says_how_many_items_it_takes() -> None:
    """By the level of the last look: that of the look at which it ended asks for more."""
    end = adapter_end({"base": base(), "adapter": lost(0.095)}, KEEP, KEEP.tasks[0], LOOKS)
    assert end.reason == "futile"
    pairs = end.pairs
    needed = items_to_decide(pairs, KEEP.tasks[0], end.look)
    early = decisions.items_to_decide(
        pairs.differences, pairs.clusters, end.look.level, KEEP.tasks[0].margin, pairs.binary
    )
    assert needed is not None
    assert early is not None
    assert ITEMS < needed < 0.8 * early


def test_all_items_are_asked_where_a_decision_is_open() -> None:
    half = one_task("gain")
    looks = STOPPING.plan(ITEMS, half, half.tasks[0])
    scores = [float(n % 10 < 6) for n in range(ITEMS)]
    after = [float(n % 10 < 7 and n % 20 != 0) for n in range(ITEMS)]
    arms = {"base": answers("base", scores), "adapter": answers("adapter", after)}
    end = adapter_end(arms, half, half.tasks[0], looks)
    assert (end.look.number, end.reason) == (5, "last look")
    assert end.decision == "PASS"


def test_one_look_is_the_fixed_evaluation() -> None:
    arms = {"base": base(), "adapter": lost(0.05)}
    entries = [entry for arm in arms.values() for entry in arm.values()]
    fixed = [replace(entry, look=1) for entry in entries]
    found = judge(InMemoryLedger(fixed), [KEEP], FIXED_PLAN)
    assert found == judge(InMemoryLedger(fixed), [KEEP])
    (task,) = found.suites[0].tasks
    assert task.looks == TaskLooks(1, 1, 0.05, ITEMS, ITEMS, "last look", None)
    assert task.interval.confidence == 0.9


def test_the_verdict_says_where_a_task_ended() -> None:
    task = judged({"base": base(2), "adapter": lost(0.02, 2)})
    assert task.looks == TaskLooks(2, 5, LOOKS.levels[1], 160, ITEMS, "decided", None)
    assert task.looks.left_out == 240
    assert task.p == pytest.approx(LOOKS.look(2).repeated_p(nominal_p(task)))
    assert task.p < KEEP.alpha


def nominal_p(task: TaskVerdict) -> float:
    from lora_kit.statistics.decisions import non_inferiority

    differences = np.array([-1.0] * task.lost + [0.0] * (160 - task.lost))
    margin = KEEP.tasks[0].margin or 0.0
    return non_inferiority(differences, [str(n) for n in range(160)], 0.05, margin, True).p


def judged(arms: dict[str, dict[str, Entry]]) -> TaskVerdict:
    entries = [entry for arm in arms.values() for entry in arm.values()]
    return judge(InMemoryLedger(entries), [KEEP], PLAN).suites[0].tasks[0]


def merged_scores(losses: int, until: int) -> dict[str, Entry]:
    return answers("merged", [float(n >= losses) for n in range(ITEMS)], until)


def test_a_merged_model_ends_with_the_adapter_where_it_is_decided() -> None:
    arms = {"base": base(2), "adapter": lost(0.02, 2), "merged": lost(0.02, 2, "merged")}
    end = adapter_end(arms, KEEP, KEEP.tasks[0], LOOKS)
    assert merged_end(arms, KEEP, KEEP.tasks[0], LOOKS, end)[0] == 2
    require_path(arms, KEEP, KEEP.tasks[0], PLAN)
    task = judged(arms)
    assert (task.decision, task.merged, task.looks.merged_at) == ("PASS", "PASS", 2)


def test_an_undecided_merged_model_is_asked_all_items() -> None:
    arms = {"base": base(), "adapter": lost(0.02, 2), "merged": merged_scores(10, 5)}
    end = adapter_end(arms, KEEP, KEEP.tasks[0], LOOKS)
    assert merged_end(arms, KEEP, KEEP.tasks[0], LOOKS, end)[0] == 5
    require_path(arms, KEEP, KEEP.tasks[0], PLAN)
    task = judged(arms)
    assert (task.decision, task.merged) == ("PASS", "PASS")
    assert (task.looks.ended_at, task.looks.merged_at) == (2, 5)
    assert task.interval.items == 160
    assert task.merged_interval is not None
    assert task.merged_interval.items == ITEMS
    with pytest.raises(EvaluationError, match=r"arm base was not asked until .*look 2 of 5"):
        require_path(
            {"base": base(2), "adapter": lost(0.02, 2), "merged": merged_scores(10, 2)},
            KEEP,
            KEEP.tasks[0],
            PLAN,
        )


def test_a_control_is_asked_what_its_file_is() -> None:
    name, control = "gguf=x", "base-gguf=x"
    file = answers(name, [float(n >= 10) for n in range(ITEMS)])
    arms = {"base": base(), "adapter": lost(0.02, 2), name: file}
    whole = {**arms, control: lost(0.1, 5, control)}
    require_path(whole, KEEP, KEEP.tasks[0], PLAN)
    [one] = judged(whole).files
    assert one.control is not None
    assert (one.control.items, one.control.delta) == (ITEMS, pytest.approx(-0.1))
    with pytest.raises(EvaluationError, match="arm base-gguf=x was not asked until"):
        require_path({**arms, control: lost(0.1, 2, control)}, KEEP, KEEP.tasks[0], PLAN)


def test_several_merged_models_are_asked_all_items() -> None:
    arms = {"base": base(), "adapter": lost(0.02, 2)}
    arms |= {name: lost(0.02, 5, name) for name in ("merged", "merged-original")}
    require_path(arms, KEEP, KEEP.tasks[0], PLAN)
    task = judged(arms)
    assert (task.looks.ended_at, task.looks.merged_at) == (2, 5)
    # Selected on half of the items and proved on the other, once, at the whole level.
    assert task.merged_interval is not None
    assert task.merges[0].interval.items + task.merged_interval.items == ITEMS
    assert task.merged_interval.confidence == 0.9


def swapped(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Return entries of which two swapped their clusters, one of each look."""
    first = next(item for item, entry in entries.items() if entry.look == 1)
    second = next(item for item, entry in entries.items() if entry.look == 2)
    return entries | {
        first: replace(entries[first], cluster=entries[second].cluster),
        second: replace(entries[second], cluster=entries[first].cluster),
    }


def without_one(entries: dict[str, Entry]) -> dict[str, Entry]:
    return dict(list(entries.items())[1:])


@pytest.mark.parametrize(
    ("arms", "wrong"),
    [
        (lambda: {"base": base(1), "adapter": lost(0.02, 1)}, "not asked to its end .*look 1 of 5"),
        (lambda: {"base": base(3), "adapter": lost(0.02, 3)}, "arm base .*look 3 of 5.*at look 2"),
        (lambda: {"base": base(3), "adapter": lost(0.02, 2)}, "arm base .*look 3 of 5.*at look 2"),
        (
            lambda: {"base": swapped(base(2)), "adapter": swapped(lost(0.02, 2))},
            "160 of 160 items, in another order",
        ),
        (
            lambda: {"base": without_one(base(2)), "adapter": without_one(lost(0.02, 2))},
            "got 159 of 160 items",
        ),
    ],
)
def test_another_path_is_refused(arms: Any, wrong: str) -> None:
    require_path({"base": base(2), "adapter": lost(0.02, 2)}, KEEP, KEEP.tasks[0], PLAN)
    with pytest.raises(EvaluationError, match=f"keep/quiz.*{wrong}"):
        require_path(arms(), KEEP, KEEP.tasks[0], PLAN)


def test_items_that_were_left_out_of_a_fixed_evaluation_are_missed() -> None:
    entries = {item: replace(entry, look=1) for item, entry in base().items()}
    require_path({"base": entries, "adapter": entries}, KEEP, KEEP.tasks[0], FIXED_PLAN)
    fewer = without_one(entries)
    with pytest.raises(EvaluationError, match="got 399 of 400 items"):
        require_path({"base": fewer, "adapter": fewer}, KEEP, KEEP.tasks[0], FIXED_PLAN)


@pytest.mark.parametrize("until", [1, 2, 3])
def test_a_verdict_that_stopped_too_soon_or_late_is_caught(tmp_path: Path, until: int) -> None:
    arms = [base(until), lost(0.02, until)]
    entries = [entry for arm in arms for entry in arm.values()]
    write_ledger(tmp_path / LEDGER, entries, PLAN.to_dict())
    write_json(tmp_path / SUITES, [KEEP.model_dump(mode="json")])
    lineage = {"backbone": "b", "adapter": "a", "suite_digests": {"keep": KEEP.digest}}
    verdict = judge(InMemoryLedger(entries), [KEEP], PLAN)
    write_json(tmp_path / VERDICT, verdict.to_dict() | lineage)
    if until == 2:
        assert check_verdict(tmp_path).verdict == verdict
        return
    with pytest.raises(EvaluationError, match=r"was not asked until|not asked to its end"):
        check_verdict(tmp_path)


def test_a_plan_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_ledger(tmp_path / LEDGER, base().values(), {"stopping": 5})
    write_json(tmp_path / SUITES, [KEEP.model_dump(mode="json")])
    lineage = {"backbone": "b", "adapter": "a", "suite_digests": {"keep": KEEP.digest}}
    arms = [base(2), lost(0.02, 2)]
    entries = [entry for arm in arms for entry in arm.values()]
    verdict = judge(InMemoryLedger(entries), [KEEP], PLAN)
    write_json(tmp_path / VERDICT, verdict.to_dict() | lineage)
    with pytest.raises(EvaluationError, match=r"ledger\.parquet: does not say which items"):
        check_verdict(tmp_path)


def test_a_look_without_a_score_decides_nothing() -> None:
    """A task whose first items have no score goes on to those that have."""
    scores: list[float] = [1.0] * ITEMS
    adapter = lost(0.02)
    broken = {
        item: replace(entry, score=None) if entry.look == 1 else entry
        for item, entry in adapter.items()
    }
    arms = {"base": answers("base", scores), "adapter": broken}
    end = adapter_end(arms, KEEP, KEEP.tasks[0], LOOKS)
    # The adapter lacks scores that the base has, so that nothing passes.
    assert (end.look.number, end.decision) == (5, "INCONCLUSIVE")
    assert end.pairs.missing == 80


def test_a_gain_spends_half_of_its_error_on_each_side() -> None:
    gain = one_task("gain")
    assert STOPPING.plan(ITEMS, gain, gain.tasks[0]) == Looks(LOOKS.ends, 0.025, -4.0)
    assert isinstance(gain, Suite)
