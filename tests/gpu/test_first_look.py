"""The look at a GPU: its cases work on a CPU, and what goes wrong in one loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.first_look import look
from tests.gpu.runner import HUNG, STEPS, Case, Record, Runner, Step, Unavailable
from tests.gpu.summary import SUMMARY, TABLE, find_goals

ROOT = Path(__file__).parents[2]
# Cases that need a GPU or packages that CI lacks.
SKIPPED = {
    ("speed", "bf16-flash"): "not installed, or no GPU: flash-attn",
    ("late", "bf16-liger"): "not installed: liger_kernel",
    ("late", "trl-liger"): "not installed: liger_kernel",
}


# Cases of each step on a CPU.
CASES = {
    "ceilings": 5,
    "small training": 5,
    "codes": 7,
    "sharded": 2,
    "speed": 8,
    "profile": 1,
    "answering": 3,
    "out of memory": 2,
    "late": 2,
}


def records(output: Path) -> dict[tuple[str, str], dict[str, Any]]:
    found = json.loads((output / STEPS).read_text())["records"]
    return {(one["step"], one["case"]): one for one in found}


@pytest.mark.slow
def test_every_case_works_on_a_cpu(tmp_path: Path) -> None:
    look(tmp_path, seconds=3600, shape="tiny")
    found = records(tmp_path)
    outcomes = {case: (one["outcome"], one["reason"]) for case, one in found.items()}
    skipped = {case: ("skipped", reason) for case, reason in SKIPPED.items()}
    assert outcomes == dict.fromkeys(outcomes, ("ok", "")) | skipped
    assert Counter(step for step, _ in outcomes) == CASES
    assert found["small training", "resume"]["figures"]["resumed_equal"]
    assert all(one["passed"] for one in found["small training", "merge"]["figures"].values())
    assert found["sharded", "nf4"]["figures"]["losses_equal"]
    drill = found["out of memory", "evaluation"]["figures"]
    assert drill["halved"]
    assert drill["same_items"]
    assert drill["largest_difference"] == 0
    ours, masked = (found["speed", case]["figures"] for case in ("bf16", "bf16-sdpa"))
    assert (ours["attention"], masked["attention"]) == ("varlen", "sdpa")
    assert ours["losses"] == pytest.approx(masked["losses"], abs=1e-3)
    summary = json.loads((tmp_path / SUMMARY).read_text())
    assert summary["outcomes"]["speed: trl"] == "ok"
    assert summary["speed"]["bf16"]["tokens_per_second"] > 0
    assert "out of memory" in (tmp_path / TABLE).read_text()


def test_a_case_that_raises_or_takes_too_long_loses_nothing(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise ValueError("broken")

    def refuse() -> dict[str, Any]:
        raise Unavailable("no such kernel")

    def sleep() -> dict[str, Any]:
        # As code of libraries does that goes on after any error.
        try:
            time.sleep(600)
        except Exception:
            time.sleep(600)
        return {}

    cases = [
        Case("fails", fail),
        Case("refuses", refuse),
        Case("sleeps", sleep, seconds=0.1),
        Case("works", lambda: {"infinite": float("inf")}),
        Case("lacks", dict, needs=("no_such_package",)),
    ]
    broken = Step("broken", 60, lambda: [Case("never", dict)][fail()["x"] :])
    late = Step("late", 60, lambda: [Case("late", dict)])
    steps = [broken, Step("mixed", 60, lambda: cases), Step("none", 0, lambda: cases[:1]), late]
    summaries: list[int] = []
    Runner(tmp_path, 300, lambda all_of_them: summaries.append(len(all_of_them))).run(steps)
    found = records(tmp_path)
    assert [(case, one["outcome"], one["reason"]) for (_, case), one in found.items()] == [
        ("", "failed", "ValueError: broken"),
        ("fails", "failed", "ValueError: broken"),
        ("refuses", "skipped", "no such kernel"),
        ("sleeps", "timed out", "took longer than 0 s"),
        ("works", "ok", ""),
        ("lacks", "skipped", "not installed: no_such_package"),
        ("fails", "skipped", "no time left"),
        ("late", "ok", ""),
    ]
    assert found["mixed", "fails"]["traceback"][-1] == "ValueError: broken"
    assert found["mixed", "works"]["figures"] == {"infinite": "inf"}
    assert summaries == list(range(1, 9))


def test_a_case_that_hangs_ends_the_look_and_leaves_the_records(tmp_path: Path) -> None:
    script = f"""
import signal, time
from pathlib import Path
from tests.gpu.runner import RING, Case, Runner, Step

def hang():
    signal.pthread_sigmask(signal.SIG_BLOCK, [RING])
    time.sleep(600)

cases = [Case("works", lambda: {{"one": 1}}), Case("hangs", hang, seconds=0.1), Case("never", dict)]
Runner(Path({str(tmp_path)!r}), 300, grace=0.2).run([Step("step", 60, lambda: cases)])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, timeout=300)
    assert done.returncode == HUNG
    found = records(tmp_path)
    assert [(case, one["outcome"]) for (_, case), one in found.items()] == [
        ("works", "ok"),
        ("hangs", "timed out"),
    ]
    assert found["step", "works"]["figures"] == {"one": 1}


def test_goals_are_of_the_fastest_that_was_measured() -> None:
    def rate(case: str, tokens: float, step: str = "speed") -> Record:
        return Record(step, case, "ok", figures={"tokens_per_second": tokens})

    measured = [
        rate("bf16", 12_500),
        rate("bf16-compile", 13_000, "late"),
        rate("nf4", 9_750),
        rate("trl", 14_000),
        rate("bf16", 99_000, "small training"),
        Record("speed", "nf4-checkpointing", "failed"),
    ]
    goals = {goal.name: (goal.found, goal.outcome) for goal in find_goals(measured)}
    assert goals == {
        "LoRA on bf16, token/s": (13_000, "met"),
        "nf4 over bf16": (0.75, "missed"),
        "LoRA on bf16 over TRL": (13_000 / 14_000, "missed"),
    }
    assert {goal.outcome for goal in find_goals([])} == {"not measured"}
