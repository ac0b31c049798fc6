"""Logs that Inspect itself wrote, in the environment that `make .venv/inspect/.installed` makes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_kit.evaluation.imported.read import read_results
from lora_kit.evaluation.imported.result import FIRST
from lora_kit.runtime.errors import EvaluationError

ROOT = Path(__file__).parents[3]
PYTHON = Path(sys.prefix) / "inspect" / "bin" / "python"


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PYTHON), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "400"},
    )


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return logs of a base that errs on every third of 40 questions, and of every seventh."""
    if not PYTHON.exists():
        pytest.skip("needs Inspect: make .venv/inspect/.installed")
    found = []
    for kind, every in (("eval", 3), ("json", 7)):
        folder = tmp_path_factory.mktemp(kind)
        done = start(Path(__file__).with_name("inspect_quiz.py"), folder, kind, 1, every)
        assert done.returncode == 0, done.stderr
        found += list(folder.iterdir())
    base, adapter = found
    return base, adapter


@pytest.mark.slow
def test_logs_in_both_formats_are_judged(logs: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = logs
    named = ["--base", base, "--adapter", adapter, "--output", tmp_path / "out"]
    done = start("-m", "lora_kit", "verdict", *named, "--cluster", "page", "--json")
    assert done.returncode in (0, 4), done.stderr
    assert "scorer match is judged, not includes, style/tone, style/words" in done.stderr
    [task] = json.loads(done.stdout)["suites"][0]["tasks"]
    assert (task["task"], task["unit"], task["interval"]["clusters"]) == ("quiz", "match", 20)
    assert (task["base"], task["adapter"]) == (26 / 40, 34 / 40)
    # q0, q21 are wrong in both; the base alone errs on twelve others, the adapter on four.
    assert (task["won"], task["lost"]) == (12, 4)
    assert "Question 3 ?" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_the_score_of_several_epochs_is_their_mean(logs: tuple[Path, Path], tmp_path: Path) -> None:
    quiz = Path(__file__).with_name("inspect_quiz.py")
    assert start(quiz, tmp_path / "log", "eval", 2, 4).returncode == 0
    [path] = (tmp_path / "log").iterdir()
    named = ["--base", path, "--adapter", path, "--output", tmp_path / "out", "--metric"]
    done = start("-m", "lora_kit", "verdict", *named, "match", "--margin", "0.1", "--json")
    [task] = json.loads(done.stdout)["suites"][0]["tasks"]
    assert task["base"] == (30 + 10 * 0.5) / 40
    done = start("-m", "lora_kit", "verdict", *named, "style/words", "--margin", "1", "--json")
    assert json.loads(done.stdout)["suites"][0]["tasks"][0]["base"] == pytest.approx(2.875)
    other = ["--base", logs[0], *named[2:-1]]
    done = start("-m", "lora_kit", "verdict", *other)
    assert done.returncode == 2
    assert "epochs: the item is another one in the base's file (got '2', and '1'" in done.stderr


@pytest.mark.slow
def test_a_log_that_cannot_be_judged_is_named(logs: tuple[Path, Path], tmp_path: Path) -> None:
    stopped = tmp_path / "stopped.json"
    log = json.loads(logs[1].read_text())
    stopped.write_text(json.dumps(log | {"status": "cancelled"}))
    broken = tmp_path / "broken.eval"
    broken.write_bytes(logs[0].read_bytes()[:5000])
    for path, options, reason in (
        (stopped, [], "not a complete evaluation (got status cancelled)"),
        (broken, [], "cannot be read as a log of Inspect"),
        (logs[1], ["--metric", "matches"], "--metric: no such scorer (got 'matches')"),
        (logs[1], ["--cluster", "pages"], "sample q0: --cluster: no such field (got pages)"),
    ):
        named = ["--base", path, "--adapter", logs[1], "--output", tmp_path / "out", *options]
        done = start("-m", "lora_kit", "verdict", *named)
        assert (done.returncode, reason in done.stderr) == (2, True), done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_inspect_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    (tmp_path / "a.eval").write_bytes(b"PK")
    with pytest.raises(EvaluationError, match=r"pip install 'lora-kit\[inspect\]'"):
        read_results(tmp_path / "a.eval", FIRST, "--base")
