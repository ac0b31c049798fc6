"""A sequence of adapters: the matrix of tasks by stages, and what is refused."""

from pathlib import Path

import pytest

from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict import Verdict
from lora_kit.pipeline.continual import assemble, evaluate_continual
from lora_kit.runtime.errors import EvaluationError
from tests.evaluation.in_memory import judge


def suite(name: str, kind: str) -> Suite:
    task = {"name": "t", "kind": kind, "source": "x"}
    return Suite.model_validate({"name": name, "role": "gain", "tasks": [task]})


def stage(suites: list[Suite], means: list[float], base: list[float]) -> Verdict:
    entries = [
        Entry(arm, one.name, "t", f"i{n}", f"c{n}", score, "", "", "", 1, 0.0)
        for arm, scores in (("base", base), ("adapter", means))
        for one, score in zip(suites, scores, strict=True)
        for n in range(10)
    ]
    return judge(entries, suites)


def test_what_was_forgotten_and_what_was_of_use_beforehand() -> None:
    """Losses: the first task is learnt, then half forgotten; the second gains before its turn."""
    suites = [suite("first", "loss"), suite("second", "loss")]
    base = [4.0, 4.0]
    verdicts = [stage(suites, [2.0, 3.5], base), stage(suites, [3.0, 1.0], base)]
    found = assemble(["base", "a", "b"], verdicts, {"first": 0, "second": 1})
    assert found.scores == ((4.0, 4.0), (2.0, 3.5), (3.0, 1.0))
    assert [column.stage for column in found.columns] == [0, 1]
    transfer = found.transfers["nats/token"]
    assert transfer.backward == pytest.approx(-1.0)
    assert transfer.forward == pytest.approx(0.5)
    assert transfer.forgetting == pytest.approx(1.0)


def test_units_are_not_mixed() -> None:
    suites = [suite("first", "loss"), suite("second", "multiple_choice")]
    verdicts = [stage(suites, [2.0, 0.0], [4.0, 0.0])] * 2
    found = assemble(["base", "a", "b"], verdicts, {"first": 0, "second": 1})
    assert found.transfers == {}
    assert len(found.scores) == 3


def test_a_sequence_that_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="at least two stages"):
        evaluate_continual([tmp_path])
    with pytest.raises(EvaluationError, match="2 stages need as many suites"):
        evaluate_continual([tmp_path, tmp_path], ["docstrings"])
    with pytest.raises(EvaluationError, match="not a run, so its suite is unknown"):
        evaluate_continual([tmp_path, tmp_path])
