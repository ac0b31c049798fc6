import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_kit.evaluation.harness import LEDGER, VERDICT
from lora_kit.evaluation.ledger import DRIFT, Entry, read_ledger, write_ledger
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict_file import (
    SUITES,
    Lineage,
    RecordedVerdict,
    check_verdict,
    read_verdict,
)
from lora_kit.runtime.errors import EvaluationError, RecipeError
from lora_kit.runtime.files import write_json
from tests.evaluation.in_memory import (
    RETENTION,
    arm,
    judge,
    ledger,
    one_task,
)


def test_differences_are_oriented_so_that_positive_is_better() -> None:
    quiz, prose = (
        judge(ledger([1.0] * 300 + [0.0] * 3, [2.9, 2.8] * 50), [RETENTION]).suites[0].tasks
    )
    assert quiz.interval.delta < 0
    assert (quiz.won, quiz.lost) == (0, 3)
    assert prose.interval.delta == pytest.approx(0.15)
    assert not prose.higher_is_better
    assert (prose.won, prose.lost) == (100, 0)


def test_one_lost_task_fails_the_suite_and_the_whole() -> None:
    verdict = judge(ledger([0.0] * 150 + [1.0] * 150, [2.9, 2.8] * 50), [RETENTION])
    assert [task.decision for task in verdict.suites[0].tasks] == ["FAIL", "PASS"]
    assert verdict.decision == verdict.suites[0].decision == "FAIL"


def test_an_undecided_task_says_how_many_items_it_would_take() -> None:
    task = judge(ledger([1.0] * 38 + [0.0] * 2, [2.9, 2.8] * 9), [RETENTION]).suites[0].tasks[0]
    assert task.decision == "INCONCLUSIVE"
    assert task.items_needed is None  # 5 points lost of 5 allowed: on the line itself
    closer = judge(ledger([1.0] * 39 + [0.0], [2.9, 2.8] * 9), [RETENTION]).suites[0].tasks[0]
    assert closer.decision == "INCONCLUSIVE"
    assert closer.items_needed is not None
    assert closer.items_needed > 40


@pytest.mark.parametrize("broken", [None, math.nan, math.inf])
def test_an_adapter_that_breaks_down_on_an_item_does_not_pass(broken: float | None) -> None:
    scores: list[float | None] = [2.9, 2.8] * 50
    task = judge(ledger([1.0] * 300, [*scores, broken]), [RETENTION]).suites[0].tasks[1]
    assert task.missing == 1
    assert task.interval.items == 100
    assert task.decision == "INCONCLUSIVE"


def test_arms_on_different_items_are_not_compared() -> None:
    rows = ledger([1.0] * 10, [2.9] * 10)[:-1]
    with pytest.raises(EvaluationError, match=r"keep/prose.*same items \(got 10 and 9\)"):
        judge(rows, [RETENTION])


def test_no_score_at_all_is_an_error_not_a_zero() -> None:
    with pytest.raises(EvaluationError, match="no item has a score"):
        judge(ledger([1.0] * 10, [None] * 10), [RETENTION])


def test_the_verdict_has_to_follow_from_the_ledger(tmp_path: Path) -> None:
    rows = ledger([1.0] * 300, [2.9, 2.8] * 50)
    write_ledger(tmp_path / LEDGER, rows)
    assert read_ledger(tmp_path / LEDGER) == rows
    write_json(tmp_path / SUITES, [RETENTION.model_dump(mode="json")])
    verdict = judge(rows, [RETENTION]).to_dict() | {
        "backbone": "b",
        "adapter": "a",
        "suite_digests": {"keep": RETENTION.digest},
    }
    write_json(tmp_path / VERDICT, verdict)
    check_verdict(tmp_path)
    # An earlier version recorded no files; where there are none, nothing is missing.
    task = verdict["suites"][0]["tasks"][0]
    del verdict["files"], task["files"]
    write_json(tmp_path / VERDICT, verdict)
    check_verdict(tmp_path)
    task["adapter"] = 0.99
    (tmp_path / VERDICT).write_text(json.dumps(verdict))
    with pytest.raises(EvaluationError, match="does not follow from the ledger"):
        check_verdict(tmp_path)


def test_what_is_no_ledger_is_told(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_text("not parquet")
    with pytest.raises(EvaluationError, match="cannot be read as a ledger"):
        read_ledger(tmp_path / LEDGER)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("role: gain", "takes no `margin`"),
        ("role: keep", "role"),
        ("alpha: 2", "alpha"),
        ("taks: []", "Did you mean `tasks`"),
    ],
)
def test_a_suite_that_cannot_work_is_refused(tmp_path: Path, change: str, part: str) -> None:
    lines = {
        "name": "name: mine",
        "role": "role: retention",
        "tasks": "tasks: [{name: a, kind: loss, source: x, margin: 0.1}]",
    }
    lines[change.split(":")[0]] = change
    path = tmp_path / "suite.yaml"
    path.write_text("\n".join(lines.values()) + "\n")
    with pytest.raises(RecipeError) as caught:
        Suite.load(path)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("task", "part"),
    [
        ("{name: a, kind: loss, source: x, margin: 0.1, metric: chrf}", "takes no `metric`"),
        ("{name: a, kind: generation, source: x, margin: 0.1}", "takes a `metric`"),
        ("{name: a, kind: loss, source: x}", "needs a `margin`"),
        ("{name: a, kind: loss, source: x, margin: 0}", "greater than 0"),
    ],
)
def test_an_option_is_used_or_refused(tmp_path: Path, task: str, part: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(f"name: mine\nrole: retention\ntasks: [{task}]\n")
    with pytest.raises(RecipeError) as caught:
        Suite.load(path)
    assert part in str(caught.value)


def test_a_perfect_adapter_on_twenty_items_is_not_safe_yet() -> None:
    entries = arm("base", [1.0] * 20) + arm("adapter", [1.0] * 20)
    task = judge(entries, [one_task("retention", margin=0.05)]).suites[0].tasks[0]
    assert task.decision == "INCONCLUSIVE"
    assert task.items_needed == 59  # 0.95^59 < 5%
    assert task.interval.delta == 0


def test_a_metric_of_zero_and_one_is_judged_as_right_and_wrong() -> None:
    """Otherwise three equal scores have no spread, an interval of width 0, and pass."""
    suite = one_task("retention", kind="generation", metric="exact_match", margin=0.02)
    entries = arm("base", [1.0] * 20) + arm("adapter", [1.0] * 20)
    assert judge(entries, [suite]).decision == "INCONCLUSIVE"
    gain = one_task("gain", kind="generation", metric="exact_match")
    entries = arm("base", [0.0] * 2) + arm("adapter", [1.0] * 2)
    assert judge(entries, [gain]).decision == "INCONCLUSIVE"


def test_a_margin_that_no_loss_could_exceed_passes_nothing() -> None:
    """A margin in points, set on a metric that turns out to give 0 and 1."""
    suite = one_task("retention", kind="generation", metric="exact_match", margin=5)
    for after in ([0.0] * 400, [1.0] * 400):
        entries = arm("base", [1.0] * 400) + arm("adapter", after)
        task = judge(entries, [suite]).suites[0].tasks[0]
        assert task.decision == "INCONCLUSIVE"
        assert task.items_needed is None
        assert "0 or 1" in task.reason


def test_differences_without_a_spread_show_no_gain() -> None:
    suite = one_task("gain", kind="generation", metric="chrf")
    task = judge(arm("base", [0.1] * 2) + arm("adapter", [0.4] * 2), [suite]).suites[0].tasks[0]
    assert task.decision == "INCONCLUSIVE"
    assert "no spread" in task.reason


def test_a_baseline_without_a_score_does_not_stop_the_verdict() -> None:
    suite = one_task("gain", kind="loss")
    entries = arm("base", [3.0, 3.1] * 20) + arm("adapter", [2.0, 2.2] * 20)
    verdict = judge([*entries, *arm("scratch", [math.nan] * 40)], [suite])
    assert verdict.decision == "PASS"
    assert verdict.suites[0].tasks[0].baselines == ()


def test_won_and_lost_add_up_to_the_difference() -> None:
    entries = arm("base", [1, 0, 1, 0] * 25) + arm("adapter", [1, 1, 0, 1] * 25)
    task = judge(entries, [one_task("retention")]).suites[0].tasks[0]
    assert task.won - task.lost == pytest.approx(task.interval.delta * task.interval.items)


def test_a_base_that_guesses_has_nothing_to_lose() -> None:
    """Otherwise an adapter that destroys everything would pass: its score stays at chance."""
    choices = {"choices": lambda n: ("a", "b", "c", "d")}
    base = [float(n % 4 == 0) for n in range(400)]
    entries = arm("base", base, **choices) + arm("adapter", base, **choices)
    task = judge(entries, [one_task("retention")]).suites[0].tasks[0]
    assert task.decision == "INCONCLUSIVE"
    assert "guessing" in task.reason
    able = [float(n % 4 != 0) for n in range(400)]
    entries = arm("base", able, **choices) + arm("adapter", able, **choices)
    assert judge(entries, [one_task("retention")]).decision == "PASS"


def test_an_adapter_that_a_prompt_would_replace_is_said_so() -> None:
    suite = one_task("gain")
    base, adapter = [0.0] * 80 + [1.0] * 20, [1.0] * 60 + [0.0] * 20 + [1.0] * 20
    entries = arm("base", base) + arm("adapter", adapter)
    beaten = judge([*entries, *arm("fewshot", base), *arm("retrieval", [0.0] * 100)], [suite])
    assert beaten.decision == "PASS"
    assert beaten.findings == ()
    assert [baseline.decision for baseline in beaten.suites[0].tasks[0].baselines] == [
        "PASS",
        "PASS",
    ]
    as_good = judge([*entries, *arm("fewshot", adapter)], [suite])
    assert as_good.suites[0].tasks[0].baselines[0].decision == "INCONCLUSIVE"
    assert [(f.kind, f.task) for f in as_good.findings] == [
        ("no advantage over few-shot prompting shown", "quiz")
    ]
    assert "The adapter is not shown to be better on quiz than" in as_good.findings[0].text
    better = judge([*entries, *arm("scratch", [1.0] * 100)], [suite])
    (baseline,) = better.suites[0].tasks[0].baselines
    assert (baseline.decision, baseline.interval.high < 0) == ("FAIL", True)
    assert [(f.kind, f.task) for f in better.findings] == [("negative transfer", "quiz")]
    assert "is better than the adapter on quiz" in better.findings[0].text


def test_a_baseline_with_a_higher_mean_alone_is_no_negative_transfer() -> None:
    """The interval of the difference has to exclude zero."""
    suite = one_task("gain")
    base, adapter = [0.0] * 80 + [1.0] * 20, [1.0] * 60 + [0.0] * 20 + [1.0] * 20
    slightly_better = [1.0] * 62 + [0.0] * 18 + [1.0] * 20
    entries = arm("base", base) + arm("adapter", adapter)
    verdict = judge([*entries, *arm("probe", slightly_better)], [suite])
    (baseline,) = verdict.suites[0].tasks[0].baselines
    assert baseline.interval.delta < 0 < baseline.interval.high
    (finding,) = verdict.findings
    assert finding.kind == "no advantage over a linear probe shown"
    assert "better than the adapter" not in finding.text


def test_a_loss_on_one_slice_is_an_alarm_though_the_whole_passes() -> None:
    slices = {"slices": lambda n: {"group": "a" if n < 60 else "b"}}
    base = [1.0] * 600
    adapter = [float(n >= 20) for n in range(600)]
    entries = arm("base", base, **slices) + arm("adapter", adapter, **slices)
    verdict = judge(entries, [one_task("retention")])
    task = verdict.suites[0].tasks[0]
    assert task.decision == "PASS"
    worst, other = task.slices
    assert (worst.value, worst.alarm, other.alarm) == ("a", True, False)
    assert worst.lost == 20
    assert worst.adjusted >= worst.p
    assert verdict.findings[0].kind == "alarm"
    assert "group a" in verdict.findings[0].text


@pytest.mark.slow
def test_chance_differences_of_many_slices_are_no_alarm() -> None:
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(20):
        base = generator.integers(0, 2, 400).astype(float)
        flips = generator.random(400) < 0.2
        adapter = np.where(flips, generator.integers(0, 2, 400), base)
        of = {"slices": lambda n: {"group": str(n % 20)}}
        entries = arm("base", base.tolist(), **of) + arm("adapter", adapter.tolist(), **of)
        suite = one_task("retention", margin=0.2)
        alarms += bool(judge(entries, [suite]).findings)
    assert alarms <= 3  # 5% of 20 is 1; without Holm, twenty slices would give some in each


def test_certainty_is_told_from_correctness() -> None:
    def sure(right: float) -> dict[str, Any]:
        return {
            "choices": lambda n: ("a", "b"),
            "answer": lambda n: 0,
            "log_likelihoods": lambda n: (right, 0.0),
        }

    entries = arm("base", [1.0] * 60, **sure(0.1)) + arm("adapter", [1.0] * 60, **sure(5.0))
    found = judge(entries, [one_task("retention")]).suites[0].tasks[0].calibration
    assert found is not None
    assert found.before.ece == pytest.approx(1 - 1 / (1 + math.exp(-0.1)))
    assert found.after.ece < 0.01
    assert found.brier.delta > 0
    plain = judge(arm("base", [1.0] * 9) + arm("adapter", [1.0] * 9), [one_task("gain")])
    assert plain.suites[0].tasks[0].calibration is None


def test_a_classification_is_judged_by_macro_f1_where_it_says_so() -> None:
    """An adapter that always predicts the frequent label loses macro-F1, hardly accuracy."""
    truth = ["rare" if n % 10 == 0 else "often" for n in range(300)]
    suite = one_task("retention", kind="classification", score="macro_f1", margin=0.1)

    def predicted(name: str, labels: list[str]) -> list[Entry]:
        return [
            Entry(name, "keep", "quiz", f"i{n}", f"c{n}", float(a == b), a, "in", b, 1, 0.1)
            for n, (a, b) in enumerate(zip(labels, truth, strict=True))
        ]

    entries = predicted("base", truth) + predicted("adapter", ["often"] * 300)
    task = judge(entries, [suite]).suites[0].tasks[0]
    assert task.unit == "macro-F1"
    assert task.decision == "FAIL"
    assert task.adapter < 0.5
    assert task.classes is not None
    rare = next(one for one in task.classes.adapter.classes if one.label == "rare")
    assert (rare.recall, rare.precision, rare.support) == (0.0, None, 30)


def test_drift_is_reported_and_decides_nothing() -> None:
    entries = arm("base", [1.0] * 300) + arm("adapter", [1.0] * 300)
    task = judge([*entries, *arm(DRIFT, [0.5] * 10)], [one_task("retention")]).suites[0].tasks[0]
    assert task.decision == "PASS"
    assert task.drift is not None
    assert (task.drift.interval.delta, task.drift.prompts) == (0.5, 10)


def test_another_harness_metrics_are_told_by_their_values() -> None:
    suite = one_task("retention", kind="lm_eval", margin=0.1)
    entries = arm("base", [1.0] * 300) + arm("adapter", [1.0] * 300)
    assert "exact" in judge(entries, [suite]).suites[0].tasks[0].method
    entries = arm("base", [0.5] * 300) + arm("adapter", [0.7, 0.6] * 150)
    assert "bootstrap" in judge(entries, [suite]).suites[0].tasks[0].method


def test_a_verdict_is_read_back_as_it_was_written_with_its_infinite_limits(tmp_path: Path) -> None:
    # One cluster has no interval.
    rows = [replace(row, cluster="c") for row in ledger([1.0] * 4, [2.9] * 4)]
    verdict = judge(rows, [RETENTION])
    assert math.isinf(verdict.suites[0].tasks[0].interval.low)
    lineage = Lineage("b", "a", {"keep": RETENTION.digest}, {"merged": "m"})
    write_json(tmp_path / VERDICT, verdict.to_dict() | asdict(lineage))
    assert read_verdict(tmp_path) == RecordedVerdict(verdict, lineage)


def test_a_verdict_of_another_version_names_what_differs(tmp_path: Path) -> None:
    verdict = judge(ledger([1.0] * 30, [2.9, 2.8] * 15), [RETENTION]).to_dict()
    lineage = asdict(Lineage("b", "a", {}))
    write_json(tmp_path / VERDICT, {**verdict, **lineage, "suites": [{"suite": "keep"}]})
    with pytest.raises(EvaluationError, match=r"verdict of this version \(got suites.0.role: "):
        read_verdict(tmp_path)
    write_json(tmp_path / VERDICT, {**verdict, **lineage, "backbone": None})
    with pytest.raises(EvaluationError, match=r"verdict of this version \(got backbone: "):
        read_verdict(tmp_path)
