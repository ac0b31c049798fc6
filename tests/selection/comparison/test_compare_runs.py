"""Runs side by side: values as computed directly, Holm, halves, and what is left out or refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lora_kit.evaluation.ledger import write_ledger
from lora_kit.evaluation.stopping import LookPlan, PlannedTask, Stopping
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict import Verdict
from lora_kit.pipeline.run_comparison import compare_runs
from lora_kit.runtime.errors import EvaluationError, LoraKitError
from lora_kit.selection.comparison import differences
from lora_kit.selection.comparison.result import RunComparison
from lora_kit.selection.sweep.record import Trial, write_trial
from lora_kit.statistics.decisions import holm, superiority
from lora_kit.statistics.looks import Looks
from tests.evaluation.in_memory import judge
from tests.selection.comparison.made_up import (
    GAIN,
    KEEP,
    evaluated,
    rows,
    scores,
    suite,
    write_results,
    write_run,
)

BASE = scores([4.0] * 40)
RANDOM = np.random.default_rng(0)
NOISE = [RANDOM.normal(0, 0.1, 40) for _ in range(12)]


def better_by(gain: float, noise: int) -> dict[str, float | None]:
    return scores([4.0 - gain + value for value in NOISE[noise].tolist()])


def compared(tmp_path: Path, *paths: Path) -> RunComparison:
    return compare_runs(paths, tmp_path / "compare.html")


def test_differences_are_those_of_a_direct_computation(tmp_path: Path) -> None:
    first, second = better_by(1.0, 0), better_by(1.3, 1)
    quiz = [scores([float(n % 10 < right) for n in range(50)]) for right in (6, 7, 9)]
    a = evaluated(tmp_path / "a", [(GAIN, BASE, first), (KEEP, quiz[0], quiz[1])])
    b = evaluated(tmp_path / "b", [(GAIN, BASE, second), (KEEP, quiz[0], quiz[2])])
    found = compared(tmp_path, a, b)
    loss, answers = sorted(found.differences, key=lambda one: one.role)
    losses = np.array([[values[item] for item in sorted(values)] for values in (first, second)])
    direct = superiority(
        losses[0] - losses[1], [f"c-{item}" for item in sorted(first)], 0.05, False
    )
    assert loss.interval == direct.interval
    assert loss.p == direct.p
    assert loss.scores == pytest.approx(tuple(losses.mean(axis=1)))
    assert found.runs[loss.better or 0].name == "b"
    # Of 50 items, the second run alone got ten right.
    assert (answers.first_only, answers.second_only, answers.binary) == (0, 10, True)
    assert answers.p == pytest.approx(2 * 0.5**10)
    assert [one.adjusted for one in (loss, answers)] == list(holm([loss.p, answers.p]))
    assert len(answers.changed[1]) == 10
    cell = next(one for one in found.tasks if one.role == "gain").cells[0]
    assert cell is not None
    assert (cell.base, cell.adapter, cell.decision) == (4.0, loss.scores[0], "PASS")


def test_verdicts_are_those_of_the_evaluation(tmp_path: Path) -> None:
    quiz = [scores([float(n % 10 < right) for n in range(100)]) for right in (6, 5)]
    results = [(GAIN, BASE, better_by(1, 0)), (KEEP, quiz[0], quiz[1])]
    entries = [
        entry
        for of, base, own in results
        for arm, values in (("base", base), ("adapter", own))
        for entry in rows(of, arm, values)
    ]
    verdict = judge(entries, [GAIN, KEEP])
    run = evaluated(tmp_path / "a", results)
    found = compared(tmp_path, run, evaluated(tmp_path / "b", results))
    for (_, task), one in zip(verdict.tasks, found.tasks, strict=True):
        cell = one.cells[0]
        assert cell is not None
        assert (cell.interval, cell.decision) == (task.interval, task.decision)
    assert found.decision(0) == verdict.decision == "FAIL"


def test_a_difference_that_only_many_comparisons_show_is_none(tmp_path: Path) -> None:
    """Twelve equal runs and a p of 0.01 in one pair: 66 pairs have such a one by chance."""
    runs = [
        evaluated(tmp_path / f"r{n}", [(GAIN, BASE, better_by(1.03 if n == 11 else 1.0, n))])
        for n in range(12)
    ]
    found = compared(tmp_path, *runs)
    assert len(found.differences) == 66
    smallest = min(found.differences, key=lambda one: one.p)
    assert 1e-4 < smallest.p < 0.05
    assert all(one.better is None for one in found.differences)
    # Only pairs with the first run and with the best one are shown; Holm counts all of them.
    assert found.best is not None
    assert all({0, found.best} & set(one.pair) for one in found.shown)
    assert len(found.shown) == 21
    assert [one.adjusted for one in found.differences] == sorted(
        holm([d.p for d in found.differences])
    )


def test_items_without_a_score_are_left_out_and_keep_a_run_from_being_better(
    tmp_path: Path,
) -> None:
    broken = better_by(2.0, 1) | {"i0": None, "i1": None}
    a = evaluated(tmp_path / "a", [(GAIN, BASE, better_by(1.0, 0))])
    b = evaluated(tmp_path / "b", [(GAIN, BASE, broken)])
    (one,) = compared(tmp_path, a, b).differences
    assert (one.interval.items, one.missing) == (38, 2)
    assert one.p < 0.001
    assert one.better is None
    assert "has no score on items" in one.doubt


def test_runs_share_the_items_that_both_were_asked(tmp_path: Path) -> None:
    a = evaluated(tmp_path / "a", [(GAIN, BASE, better_by(1.0, 0))])
    few = {item: score for item, score in better_by(1.5, 1).items() if int(item[1:]) < 15}
    b = evaluated(tmp_path / "b", [(GAIN, scores([4.0] * 15), few)])
    (one,) = compared(tmp_path, a, b).differences
    assert one.interval.items == 15


def test_an_evaluation_that_ended_early_is_compared_at_its_look(tmp_path: Path) -> None:
    """The end followed from the results, so that a p-value of the items alone is too small."""
    stopping = Stopping(looks=2)
    plan = LookPlan(stopping, {"a-retention/multiple_choice-task": PlannedTask(80, (40, 80))})
    look = {f"i{n}": 1 if n < 40 else 2 for n in range(80)}
    base = scores([float(n % 2) for n in range(80)])
    own = [scores([float(n % 10 < right) for n in range(80)]) for right in (5, 8)]
    ended = {item: score for item, score in own[0].items() if look[item] == 1}
    for name, adapter in (("a", ended), ("b", own[1])):
        write_results(
            write_run(tmp_path / name) / "evaluation",
            [(KEEP, {item: base[item] for item in adapter}, adapter)],
            plan=plan.to_dict(),
            look=look.__getitem__,
        )
    (one,) = compared(tmp_path, tmp_path / "a", tmp_path / "b").differences
    looks = replace(stopping.plan(80, KEEP, KEEP.tasks[0]), alpha=KEEP.alpha / 2, shape=1.0)
    assert isinstance(looks, Looks)
    assert (one.interval.items, one.second_only, one.first_only) == (40, 12, 0)
    # Twelve of forty flipped one way: p of 0.0005 if the number of items had been fixed.
    assert one.p == pytest.approx(2 * looks.look(1).repeated_p(0.5**12))
    assert one.p > 2 * 0.5**12


def test_other_definitions_of_a_suite_are_left_out_with_the_reason(tmp_path: Path) -> None:
    other = GAIN.model_copy(update={"tasks": [GAIN.tasks[0].model_copy(update={"limit": 40})]})
    a = evaluated(tmp_path / "a", [(GAIN, BASE, better_by(1, 0)), (KEEP, BASE, BASE)])
    b = evaluated(tmp_path / "b", [(other, BASE, better_by(2, 1)), (KEEP, BASE, BASE)])
    found = compared(tmp_path, a, b)
    assert [one.suite for one in found.differences] == ["a-retention"]
    reasons = {one.subject: one.reason for one in found.left_out}
    assert reasons == {"a-gain: b": "not the suite that a was asked (differs in tasks.0.limit)"}
    assert len({one.name for one in found.tasks}) == 3
    assert "differs in tasks.0.limit" in (tmp_path / "compare.html").read_text()


def test_items_of_another_text_are_left_out(tmp_path: Path) -> None:
    a = evaluated(tmp_path / "a", [(GAIN, BASE, better_by(1, 0))])
    b = evaluated(tmp_path / "b", [(GAIN, BASE, better_by(2, 1))], text="of a newer file")
    found = compared(tmp_path, a, b)
    assert found.differences == ()
    (left,) = found.left_out
    assert left.subject == "a-gain/loss-task: a and b"
    assert "40 of 40 items have another prompt" in left.reason
    assert "Nothing can be compared" in (tmp_path / "compare.html").read_text()


def test_a_suite_that_one_run_lacks_is_named(tmp_path: Path) -> None:
    a = evaluated(tmp_path / "a", [(GAIN, BASE, better_by(1, 0))])
    b = evaluated(tmp_path / "b", [(GAIN, BASE, better_by(1, 1)), (KEEP, BASE, BASE)])
    found = compared(tmp_path, a, b)
    assert [(one.subject, one.reason) for one in found.left_out] == [
        ("a-retention", "no results of a")
    ]
    assert found.tasks[1].cells[0] is None


def halves(run: Path, a: dict[str, float | None], b: dict[str, float | None] | None) -> None:
    """Write results on half A, and on half B where it was asked."""
    write_run(run)
    write_results(run / "half-a", [(GAIN, scores([4.0] * len(a)), a)])
    if b is not None:
        write_results(run / "half-b", [(GAIN, dict.fromkeys(b, 4.0), b)])


def test_seeds_are_their_runs_and_the_one_that_ships_is_compared_on_half_b(
    tmp_path: Path,
) -> None:
    root = tmp_path / "mine-seeds"
    for seed in range(3):
        half_a = dict(list(better_by(1 + (seed == 1), seed).items())[:20])
        half_b = {f"i{n}": value for n, value in enumerate(NOISE[seed + 3].tolist(), 20)}
        halves(root / f"seed-{seed}", half_a, {item: 3 + (v or 0) for item, v in half_b.items()})
    (root / "seeds.json").write_text(json.dumps({"seeds": [0, 1, 2], "ships": 1}))
    found = compared(tmp_path, root)
    assert [one.name for one in found.runs] == ["seed-0", "seed-1", "seed-2"]
    assert [one.chosen for one in found.runs] == ["", "seed that ships", ""]
    assert [one.items for one in found.runs] == ["both halves", "half B", "both halves"]
    by_pair = {one.pair: one for one in found.differences}
    assert {pair: one.items for pair, one in by_pair.items()} == {
        (0, 1): "half B",
        (1, 2): "half B",
        (0, 2): "both halves",
    }
    assert by_pair[0, 2].interval.items == 60
    # On half A, the one that ships leads by one nat; that is how it was chosen.
    assert abs(by_pair[0, 1].interval.delta) < 0.2
    assert found.best == 1
    page = (tmp_path / "compare.html").read_text()
    assert "seed-1 is the seed that ships, chosen for its results on half A" in page
    assert "it is compared on half B alone" in page


def test_a_run_without_results_on_retention_is_not_said_to_keep_it(tmp_path: Path) -> None:
    quiz = scores([float(n % 10 < 6) for n in range(200)])
    forgot = scores([float(n % 10 < 3) for n in range(200)])
    a = evaluated(tmp_path / "a", [(GAIN, BASE, better_by(1.0, 0)), (KEEP, quiz, quiz)])
    b = evaluated(tmp_path / "b", [(GAIN, BASE, better_by(1.5, 1)), (KEEP, quiz, forgot)])
    c = evaluated(tmp_path / "c", [(GAIN, BASE, better_by(2.0, 2))])
    found = compared(tmp_path, a, b, c)
    assert found.best == 0
    assert "keep all retention tasks" in found.best_reason


def test_a_chosen_run_that_shares_no_item_is_not_said_to_be_compared(tmp_path: Path) -> None:
    root = tmp_path / "mine-seeds"
    half_a, half_b = scores(NOISE[0].tolist()[:20]), scores(NOISE[1].tolist()[:20], 20)
    halves(root / "seed-0", half_a, half_b)
    other = evaluated(tmp_path / "b", [(GAIN, scores([4.0] * 9, 90), scores([3.0] * 9, 90))])
    (root / "seeds.json").write_text(json.dumps({"seeds": [0], "ships": 0}))
    compared(tmp_path, root, other)
    assert "it is compared on half B" not in (tmp_path / "compare.html").read_text()
    (root / "seeds.json").write_text("{}")
    with pytest.raises(EvaluationError, match=r"seeds\.json: seeds: not a list .*got None"):
        compared(tmp_path, root, other)


def trial(number: int, values: dict[str, str], status: str, verdict: Verdict | None) -> Trial:
    runs = () if status == "refused" else (f"trials/{number}",)
    return Trial(number, values, not values, status, "", 1.0, runs, {}, verdict)  # type: ignore[arg-type]


def sweep_of(root: Path, gains: tuple[float, ...], winner: int) -> Path:
    """Write a sweep whose winner and default have results on both halves."""
    for number, gain in enumerate(gains):
        own = dict(list(better_by(gain, number).items())[:20])
        on_b = {f"i{n}": 3.0 + v for n, v in enumerate(NOISE[number + 6].tolist(), 20)}
        halves(root / f"trials/{number}", own, on_b if number in (0, winner) else None)
        values = {"training.learning_rate": f"{number}e-4"} if number else {}
        write_trial(root, trial(number, values, "complete", None))
    write_trial(root, trial(9, {"adapter.rank": "4"}, "pruned", None))
    write_trial(root, trial(10, {"adapter.rank": "0"}, "refused", None))
    write_run(root)
    record = {"half_b": {"run": f"trials/{winner}"}}
    (root / "sweep.json").write_text(json.dumps(record))
    return root


def test_a_sweep_is_its_complete_trials_and_its_winner_is_not_flattered(tmp_path: Path) -> None:
    root = sweep_of(tmp_path / "sweep", (1.0, 1.5, 2.0), winner=2)
    found = compared(tmp_path, root)
    names = [one.name for one in found.runs]
    assert names == ["default", "learning_rate 1e-4", "learning_rate 2e-4"]
    assert [one.chosen for one in found.runs] == ["", "", "winner of the sweep"]
    by_pair = {one.pair: one for one in found.differences}
    assert by_pair[0, 2].items == "half B"
    assert by_pair[0, 1].items == by_pair[1, 2].items == "half A"
    assert by_pair[0, 1].better == 1
    # The trial that did not win has no results on half B, and on half A the winner was chosen.
    assert by_pair[1, 2].p < 0.001
    assert by_pair[1, 2].better is None
    assert "was chosen on these items" in by_pair[1, 2].doubt
    page = (tmp_path / "compare.html").read_text()
    assert "one run has no results there" in page
    # Named alone, a winner is still one.
    alone = compared(tmp_path, root / "trials/1", root / "trials/2")
    assert [one.chosen for one in alone.runs] == ["", "winner of the sweep"]
    assert [one.name for one in alone.runs] == ["1", "2"]


def test_a_chosen_run_is_compared_with_another_one_on_the_items_of_half_b(tmp_path: Path) -> None:
    root = sweep_of(tmp_path / "sweep", (1.0, 2.0), winner=1)
    every = evaluated(tmp_path / "plain", [(GAIN, scores([4.0] * 60), scores([3.0] * 60))])
    found = compared(tmp_path, every, root / "trials/1")
    (one,) = found.differences
    assert (one.items, one.interval.items) == ("half B", 40)


def test_names_are_the_shortest_ends_of_paths_that_differ(tmp_path: Path) -> None:
    results = [(GAIN, BASE, better_by(1, 0))]
    roots = [tmp_path / "x/one", tmp_path / "y/one", tmp_path / "y/two"]
    found = compared(tmp_path, *(evaluated(root, results) for root in roots))
    assert [one.name for one in found.runs] == ["x/one", "y/one", "two"]
    # A run that is named twice counts once.
    again = compared(tmp_path, roots[0], roots[2], tmp_path / "y/../y/two")
    assert [one.name for one in again.runs] == ["one", "two"]
    sweeps = [sweep_of(tmp_path / name, (1.0, 1.5), 1) for name in ("s1", "s2")]
    assert [one.name for one in compared(tmp_path, *sweeps).runs] == [
        *("s1: default", "s1: learning_rate 1e-4"),
        *("s2: default", "s2: learning_rate 1e-4"),
    ]


def test_what_cannot_be_compared_is_refused_by_name(tmp_path: Path) -> None:
    results = [(GAIN, BASE, better_by(1, 0))]
    run = evaluated(tmp_path / "run", results)
    other = evaluated(tmp_path / "other", results, backbone="c" * 64)
    trained = write_run(tmp_path / "trained")
    (unfinished := tmp_path / "unfinished" / "records").mkdir(parents=True)
    mixed = evaluated(tmp_path / "mixed", results)
    write_results(mixed / "half-a", results, adapter="d" * 64)
    nameless = evaluated(tmp_path / "nameless", results)
    (nameless / "evaluation/verdict.json").unlink()
    cases = {
        "compare: needs at least two runs \\(got 1\\).*a run is a directory": (run, run),
        "other: has another backbone than run": (run, other),
        "trained: has no results": (run, trained),
        "not a run \\(got no recipe.yaml.*a run is a directory that": (run, tmp_path / "nothing"),
        "the sweep is not finished": (run, unfinished.parent),
        "mixed: its results are of several adapters": (run, mixed),
        "nameless: its backbone is not known": (run, nameless),
    }
    for message, paths in cases.items():
        with pytest.raises(EvaluationError, match=message) as refused:
            compared(tmp_path, *paths)
        assert ". Fix: " in str(refused.value)
    with pytest.raises(EvaluationError, match="--output: a directory"):
        compare_runs([run, other], tmp_path)
    assert not (tmp_path / "compare.html").exists()


def test_a_backbone_may_be_named_by_the_record_alone(tmp_path: Path) -> None:
    results = [(GAIN, BASE, better_by(1, 0))]
    runs = [evaluated(tmp_path / name, results) for name in ("a", "b")]
    for run in runs:
        (run / "evaluation/verdict.json").unlink()
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(record | {"backbone": {"digest": "b" * 64}}))
    assert len(compared(tmp_path, *runs).differences) == 1


def test_a_file_that_is_no_ledger_is_an_error_of_the_user(tmp_path: Path) -> None:
    run = evaluated(tmp_path / "run", [(GAIN, BASE, better_by(1, 0))])
    broken = evaluated(tmp_path / "broken", [(GAIN, BASE, better_by(1, 1))])
    (broken / "evaluation/ledger.parquet").write_bytes(b"PAR1")
    with pytest.raises(LoraKitError, match=r"ledger.parquet: cannot be read"):
        compared(tmp_path, run, broken)


def test_tasks_beside_the_verdict_are_not_compared(tmp_path: Path) -> None:
    judged = {"name": "helpful", "kind": "judge", "source": "x", "in_verdict": False}
    judged |= {"judge": {"model": "some/judge"}}
    plain = GAIN.tasks[0].model_dump(mode="json")
    both = Suite.model_validate({"name": "a-gain", "role": "gain", "tasks": [plain, judged]})
    runs = []
    for n, name in enumerate(("a", "b")):
        run = evaluated(tmp_path / name, [(both, BASE, better_by(1 + n, n))])
        own = scores([float(n)] * 40)
        extra = [replace(one, task="helpful") for one in rows(both, "adapter", own)]
        first = [
            e
            for arm, v in (("base", BASE), ("adapter", better_by(1, n)))
            for e in rows(both, arm, v)
        ]
        write_ledger(run / "evaluation/ledger.parquet", [*first, *extra])
        runs.append(run)
    found = compared(tmp_path, *runs)
    assert [one.task for one in found.differences] == ["loss-task"]
    assert [(one.subject, one.reason) for one in found.left_out] == [
        ("a-gain: helpful", "stands beside the verdict")
    ]


def test_macro_f1_is_compared_by_labels(tmp_path: Path) -> None:
    labels = suite(kind="classification", score="macro_f1", labels=["x", "y"])
    right = scores([1.0, 0.0] * 30)
    a = evaluated(tmp_path / "a", [(labels, right, right)])
    b = evaluated(tmp_path / "b", [(labels, right, scores([1.0] * 60))])
    (one,) = compared(tmp_path, a, b).differences
    assert one.unit == "macro-F1"
    assert len(one.changed[1]) == differences.MAX_CHANGED
