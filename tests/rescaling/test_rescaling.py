"""`lora-kit rescale` end to end: scale chosen on one half, proved on the other, and written."""

import io
import json
import shutil
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lora_kit.adapter.saved import adapter_sha256
from lora_kit.cli import main
from lora_kit.evaluation.engine import model_answers as engine
from lora_kit.evaluation.verdict_file import check_verdict, read_verdict
from lora_kit.pipeline import rescaling
from lora_kit.recipe.recipe import Recipe
from lora_kit.rescaling.choice import choose_scale
from tests.evaluation.counting import count_outcomes
from tests.rescaling.small_run import PROSE, SUMS, command, entries, recorded, suite

QUIZ = """
name: quiz
role: retention
tasks:
  - {name: quiz, kind: multiple_choice, source: general-knowledge, limit: 16, margin: MARGIN}
"""


@dataclass(frozen=True)
class ObservedRescaling:
    """Observed rescaling with the scales 0.5, 1 and 2.

    Attributes:
        asked: sizes of the batches that a model was run on.
        printed: output on stdout.
    """

    run: Path
    status: int
    asked: list[int]
    printed: str

    @property
    def record(self) -> dict[str, Any]:
        return recorded(self.run)


@pytest.fixture(scope="module")
def done(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> ObservedRescaling:
    """A rescaling whose choice is observed."""
    place = tmp_path_factory.mktemp("done")
    run = shutil.copytree(trained, place / "run")

    def choosing(candidates: Any) -> Any:
        assert not (run / "rescale" / "half-b").exists(), "the choice could see half B"
        return choose_scale(candidates)

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(printed):
        patched.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patched.setattr(rescaling, "choose_scale", choosing)
        asked = count_outcomes(patched)
        status = command("rescale", run, "--scales", "0.5,2", "--json")
    return ObservedRescaling(run, status, asked, printed.getvalue())


@pytest.fixture
def again(done: ObservedRescaling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the rescaled run, and a cache that knows nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copytree(done.run, tmp_path / "again")


def halves_of(record: dict[str, Any]) -> tuple[int, int]:
    """Items in half A and in half B, over all tasks."""
    a, b = (sum(one[half] for one in record["items"].values()) for half in ("a", "b"))
    return a, b


def test_no_item_is_in_both_halves_and_the_base_is_asked_once(done: ObservedRescaling) -> None:
    of_a, of_b = entries(done.run, "half-a"), entries(done.run, "half-b")
    items = [{(e.task, e.item) for e in of} for of in (of_a, of_b)]
    assert not items[0] & items[1]
    assert len(items[0] | items[1]) == SUMS + PROSE
    assert halves_of(done.record) == (len(items[0]), len(items[1]))
    assert done.record["items"]["aim/sums"] == {"a": SUMS // 2, "b": SUMS // 2}
    assert {e.arm for e in of_a} == {"base", "adapter", "scale 0.5", "scale 2"}
    assert {e.arm for e in of_b} == {"base", "adapter"}
    assert sum(done.asked) == 4 * len(items[0]) + 2 * len(items[1])


def test_what_is_written_is_what_was_proved(done: ObservedRescaling) -> None:
    run, record = done.run, done.record
    assert (done.status, json.loads(done.printed)) == (0, record)
    check_verdict(run / "rescale" / "half-b")
    stored = read_verdict(run / "rescale" / "half-b")
    assert (
        stored.lineage.adapter
        == adapter_sha256(run / "adapter-rescaled")
        == record["adapter_rescaled"]
    )
    assert record["adapter"] == adapter_sha256(run / "adapter")
    assert stored.verdict.decision == record["decision"] == record["half_b"]["decision"] == "PASS"
    files = [run / name / "adapter_model.safetensors" for name in ("adapter", "adapter-rescaled")]
    before, after = map(load_file, files)
    for name, tensor in before.items():
        factor = record["scale"]["early"] if "lora_B" in name else 1.0
        assert after[name].equal(factor * tensor), name
    assert (run / "rescale.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "rescale" / "half-b" / "report.html").is_file()


def test_each_scale_is_judged_by_its_own_results(done: ObservedRescaling) -> None:
    """The stronger gains more here, and the record says what the ledger does."""
    half, whole, double = (one["tasks"][0] for one in done.record["half_a"])
    assert 0 < half["difference"] < whole["difference"] < double["difference"]
    assert half["low"] < half["difference"] < half["high"]
    for arm, row in (("scale 0.5", half), ("adapter", whole), ("scale 2", double)):
        scores = [e.score for e in entries(done.run, "half-a") if (e.arm, e.task) == (arm, "sums")]
        assert row["adapter"] == pytest.approx(sum(scores) / len(scores))  # type: ignore[arg-type]
    assert done.record["scale"]["name"] == "2"


def test_an_interrupted_rescaling_resumes(
    run: Path, done: ObservedRescaling, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = engine.compute_outcomes, []

    def dying(*arguments: Any) -> Any:
        calls.append(len(arguments[1]))
        if len(calls) > 4:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "compute_outcomes", dying)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            main(["rescale", str(run), "--scales", "0.5,2"])
    assert not (run / "rescale.json").exists()
    asked = count_outcomes(monkeypatch)
    assert command("rescale", run, "--scales", "0.5,2") == 0
    assert sum(asked) == sum(done.asked) - sum(calls[:4])
    assert recorded(run) == done.record


def test_what_is_measured_is_not_measured_again(
    again: Path, done: ObservedRescaling, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = again / "adapter-rescaled" / "evaluation"
    evaluated.mkdir()
    asked = count_outcomes(monkeypatch)
    assert command("rescale", again, "--scales", "0.5,0.75,2") == 0
    assert sum(asked) == halves_of(done.record)[0]  # the new scale on half A, which does not win
    record = recorded(again)
    assert [one["name"] for one in record["half_a"]] == ["0.5", "0.75", "1", "2"]
    assert record["half_b"] == done.record["half_b"]
    assert evaluated.is_dir()  # the same adapter, so what was found of it stays


def test_where_nothing_is_kept_nothing_is_left_to_ship(
    again: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapter of an earlier rescaling is removed."""
    gain = Recipe.load(again / "recipe.yaml").evaluation.suites[0]
    strict = suite(tmp_path, QUIZ, MARGIN=0.01)
    assert command("rescale", again, "--scales", "1", "--suite", gain, "--suite", strict) == 3
    record, printed = recorded(again), capsys.readouterr().out
    assert (record["scale"], record["half_b"], record["adapter_rescaled"]) == (None, None, None)
    assert record["decision"] == "FAIL"
    assert "no scale is shown to keep all retention tasks" in record["reason"]
    assert "No scale is chosen" in printed
    assert "Adapter:" not in printed
    assert not (again / "adapter-rescaled").exists()
    assert not (again / "rescale" / "half-b").exists()
    assert (again / "rescale.png").is_file()


@pytest.mark.slow  # merges and verifies in a new process
def test_the_written_adapter_is_evaluated_and_merged_like_any_other(
    again: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = recorded(again)
    suites = Recipe.load(again / "recipe.yaml").evaluation.suites
    named = [part for one in suites for part in ("--suite", one)]
    # Rescaling asks all items.
    asked = (*named, "--stopping", "none")
    assert command("evaluate", again / "adapter-rescaled", *asked, "--json") == 0
    whole = json.loads(capsys.readouterr().out)["suites"][0]["tasks"][0]["interval"]
    (half_a,) = [one for one in record["half_a"] if one["name"] == record["scale"]["name"]]
    parts = [half_a["tasks"][0], record["half_b"]["tasks"][0]]
    assert record["scale"]["name"] != "1"
    # All items are those of both halves, and the adapter from disk is the one that was measured.
    assert sum(part["items"] for part in parts) == whole["items"]
    mean = sum(part["items"] * part["difference"] for part in parts) / whole["items"]
    assert whole["delta"] == pytest.approx(mean, abs=1e-4)
    assert command("merge", again / "adapter-rescaled", "--output", tmp_path / "merged") == 0
    assert json.loads((tmp_path / "merged" / "merge.json").read_text())["verification"]["passed"]


REFUSED = {
    "no run": (["rescale", "absent"], "absent: not a run directory"),
    "no number": (["rescale", "RUN", "--scales", "0.5,x"], "--scales: not a number (got 'x')"),
    "no intruders": (
        ["rescale", "RUN", "--intruders", "1"],
        "--intruders: 1 is the adapter as trained, which is always tried (got no other factor)",
    ),
    "no factor": (
        ["rescale", "RUN", "--intruders", "0.5,1.5"],
        "--intruders: must be from 0 to 1 (got 1.5)",
    ),
    "top k alone": (
        ["rescale", "RUN", "--intruder-top-k", "5"],
        "--intruder-top-k: has no effect without --intruders (got 5)",
    ),
    "threshold alone": (
        ["rescale", "RUN", "--intruder-threshold", "0.2"],
        "--intruder-threshold: has no effect without --intruders (got 0.2)",
    ),
    "no top k": (
        ["rescale", "RUN", "--intruders", "0", "--intruder-top-k", "0"],
        "--intruder-top-k: must be at least 1 (got 0)",
    ),
    "no threshold": (
        ["rescale", "RUN", "--intruders", "0", "--intruder-threshold", "0"],
        "--intruder-threshold: must be above 0 and at most 1 (got 0)",
    ),
    "no scale": (
        ["rescale", "RUN", "--scales", "-1"],
        "--scales: must be finite and not negative (got -1)",
    ),
    "no thirds": (
        ["rescale", "RUN", "--by-layer"],
        "--by-layer: too few decoder blocks for three thirds (got 2)",
    ),
    "no gain": (
        ["rescale", "RUN", "--suite", "KEEP"],
        "no suite has the role gain (got keep (retention))",
    ),
    "too few": (
        ["rescale", "RUN", "--suite", "FEW", "--suite", "KEEP"],
        "aim/sums: too few clusters for two halves (got 6 items",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_runs_that_cannot_be_rescaled_are_refused_before_anything_is_measured(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    asked = count_outcomes(monkeypatch)
    arguments, message = REFUSED[case]
    gain, keep = Recipe.load(run / "recipe.yaml").evaluation.suites
    few = tmp_path / "few.yaml"
    few.write_text(Path(gain).read_text().replace("sums,", "sums, limit: 6,"))
    places = {"RUN": str(run), "KEEP": keep, "FEW": str(few)}
    assert command(*(places.get(argument, argument) for argument in arguments)) == 2
    assert message in capsys.readouterr().err
    assert asked == []
    assert not (run / "rescale.json").exists()


def test_dora_is_refused_before_the_backbone_is_loaded(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loading(*arguments: object) -> None:
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr(rescaling, "open_run", loading)
    path = run / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    assert command("rescale", run) == 2
    assert "use_dora: makes the adapter more" in capsys.readouterr().err
