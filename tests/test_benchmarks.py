"""Benchmarks run from a clone alone, and each takes `--quick`."""

import importlib
import sys
from pathlib import Path

import pytest

from tests.benchmarks import evaluation

SCRIPTS = sorted(
    path.stem
    for path in (Path(__file__).parent / "benchmarks").glob("*.py")
    if "__main__" in path.read_text(encoding="utf-8")
)


def test_there_are_benchmarks() -> None:
    assert {"evaluation", "merging", "scaling", "training"} <= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_benchmark_takes_quick(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = importlib.import_module(f"tests.benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 0
    assert "--quick" in capsys.readouterr().out


def test_no_benchmark_reads_data_from_outside_the_repository() -> None:
    for path in (Path(__file__).parent / "benchmarks").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert '".."' not in text, path
        assert "shared/data" not in text, path


def test_the_items_of_the_evaluation_benchmark_are_in_the_repository(tmp_path: Path) -> None:
    assert evaluation.write_tasks(tmp_path / "full", limit=60, shots=0) == 360
    assert evaluation.write_tasks(tmp_path / "few-shot", limit=60, shots=5) == 60
    assert evaluation.write_tasks(tmp_path / "quick", limit=20, shots=0) >= 120


def test_shots_are_not_among_the_evaluated_items(tmp_path: Path) -> None:
    evaluation.write_tasks(tmp_path / "tasks", limit=60, shots=0)
    for name in evaluation.TASKS:
        test, train = (
            set((tmp_path / "tasks" / f"{name}-{split}.jsonl").read_text().splitlines())
            for split in ("test", "train")
        )
        assert (len(test), len(train)) == (60, 5)
        assert not test & train
