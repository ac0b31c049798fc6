"""`lora-kit dial` as a whole: picked on one half, proved on the other, written as measured."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lora_kit.adapters import adapter_sha256
from lora_kit.cli import main
from lora_kit.dialling.pick import pick
from lora_kit.evaluation.engine import run as engine
from lora_kit.evaluation.harness import LEDGER, check_verdict, read_verdict
from lora_kit.evaluation.ledger import DRIFT, Entry, read_ledger
from lora_kit.pipeline import dialling, train
from lora_kit.recipe import Recipe

GAIN = """
name: aim
role: gain
tasks:
  - {name: sums, kind: loss, source: ITEMS, limit: 40, max_length: 128}
"""
KEEP = """
name: keep
role: retention
tasks:
  - {name: prose, kind: loss, source: python-reference, limit: 40, max_length: 64, margin: MARGIN}
"""
SUMS, PROSE = 40, 40
ADAPTER = "adapter_model.safetensors"


def suite(directory: Path, text: str, **values: object) -> str:
    for name, value in values.items():
        text = text.replace(name, str(value))
    path = directory / f"{'-'.join(map(str, values.values())).replace('/', '')}.yaml"
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A run that learned sums, its suites on sums and on prose, within whose margin it stays."""
    place = tmp_path_factory.mktemp("dialled")
    learned, asked = place / "learned.jsonl", place / "asked.jsonl"
    for path, first in ((learned, 100), (asked, 500)):
        sums = [(n, n + 3) for n in range(first, first + 40)]
        rows = [{"prompt": f"{n} plus 3?", "completion": f"It is {total}."} for n, total in sums]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "backbone": {"model": str(tiny), "quantization": "none", "dtype": "float32"},
            "adapter": {"rank": 4, "alpha": 8},
            "data": {"train": [{"source": str(learned)}], "max_length": 128},
            "training": {"batch_size": 8, "learning_rate": 5e-3, "epochs": 2},
            "evaluation": {
                "suites": [suite(place, GAIN, ITEMS=asked), suite(place, KEEP, MARGIN=9)],
            },
        }
    )
    return train(recipe, place / "run").session.run.root


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and a cache that knows nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copytree(trained, tmp_path / "run")


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def dialled(run: Path, *arguments: object) -> tuple[int, dict[str, Any]]:
    status = command("dial", run, "--json", *arguments)
    return status, json.loads((run / "dial.json").read_text())


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that a model is asked."""
    asked: list[int] = []
    real = engine.outcomes

    def counting(scorer: Any, requests: Sequence[Any], *rest: Any) -> Any:
        asked.append(len(requests))
        return real(scorer, requests, *rest)

    monkeypatch.setattr(engine, "outcomes", counting)
    return asked


def entries(run: Path, half: str) -> list[Entry]:
    return [e for e in read_ledger(run / "dial" / half / LEDGER) if e.arm != DRIFT]


def test_picked_on_one_half_and_proved_on_the_other(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = counted(monkeypatch)

    def picking(candidates: Any) -> Any:
        assert not (run / "dial" / "half-b").exists(), "the pick could see half B"
        return pick(candidates)

    monkeypatch.setattr(dialling, "pick", picking)
    status, record = dialled(run, "--scales", "0.5,1")
    assert status == 0
    assert json.loads(capsys.readouterr().out) == record
    of_a, of_b = entries(run, "half-a"), entries(run, "half-b")
    items = [{(e.task, e.item) for e in of} for of in (of_a, of_b)]
    assert not items[0] & items[1]
    assert len(items[0] | items[1]) == SUMS + PROSE
    assert {e.arm for e in of_a} == {"base", "adapter", "scale 0.5"}
    assert {e.arm for e in of_b} == {"base", "adapter"}
    # The base once in each half.
    assert sum(asked) == 3 * len(items[0]) + 2 * len(items[1])
    assert record["items"] == {
        "aim/sums": {"a": 20, "b": 20},
        "keep/prose": record["items"]["keep/prose"],
    }
    # What ships is what was measured: the verdict names the written adapter, and follows.
    check_verdict(run / "dial" / "half-b")
    stored = read_verdict(run / "dial" / "half-b")
    assert stored["adapter"] == adapter_sha256(run / "adapter-scaled") == record["adapter_scaled"]
    assert stored["decision"] == record["decision"] == record["half_b"]["decision"] == "PASS"
    scale = record["scale"]["early"]
    before, after = (
        load_file(run / "adapter" / ADAPTER),
        load_file(run / "adapter-scaled" / ADAPTER),
    )
    for name, tensor in before.items():
        assert after[name].equal(scale * tensor if "lora_B" in name else tensor), name
    assert (run / "dial.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "dial" / "half-b" / "report.html").is_file()


def test_each_scale_is_judged_by_its_own_results(run: Path) -> None:
    """Half of the adapter gains less than all of it, and the record says what the ledger does."""
    _, record = dialled(run, "--scales", "0.5,1")
    half, whole = (one["tasks"][0] for one in record["half_a"])
    assert 0 < half["difference"] < whole["difference"]
    assert half["low"] < half["difference"] < half["high"]
    for arm, told in (("scale 0.5", half), ("adapter", whole)):
        scores = [e.score for e in entries(run, "half-a") if (e.arm, e.task) == (arm, "sums")]
        assert told["adapter"] == pytest.approx(sum(scores) / len(scores))  # type: ignore[arg-type]
    # Of the arms of half B the adapter is at the scale that was taken, not as it was trained.
    best = max(record["half_a"], key=lambda one: one["gain"]["half_intervals"])
    assert record["scale"]["name"] == best["name"]


def test_what_is_measured_is_not_measured_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = engine.outcomes, []

    def dying(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "outcomes", dying)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            main(["dial", str(run), "--scales", "0.5,1"])
    assert not (run / "dial.json").exists()
    asked = counted(monkeypatch)
    _, record = dialled(run, "--scales", "0.5,1")
    a, b = (sum(one[half] for one in record["items"].values()) for half in ("a", "b"))
    assert 0 < sum(asked) < 3 * a + 2 * b
    evaluated = run / "adapter-scaled" / "evaluation"
    evaluated.mkdir()
    asked.clear()
    _, again = dialled(run, "--scales", "0.5,1")
    assert (asked, again) == ([], record)
    assert evaluated.is_dir()  # the same adapter, so what was found of it stays
    _, more = dialled(run, "--scales", "0.5,0.75,1")
    assert asked[: len(asked)]
    assert a <= sum(asked) <= a + b  # the new scale on half A; on half B only if it is taken
    assert len(more["half_a"]) == 3


def test_where_nothing_is_kept_nothing_is_left_to_ship(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dialled(run, "--scales", "1")[0] == 0
    assert (run / "adapter-scaled").is_dir()
    gain = Recipe.load(run / "recipe.yaml").evaluation.suites[0]
    strict = suite(tmp_path, KEEP, MARGIN=1e-7)
    capsys.readouterr()
    status = command("dial", run, "--scales", "1", "--suite", gain, "--suite", strict)
    record = json.loads((run / "dial.json").read_text())
    told = capsys.readouterr().out
    assert status == 3
    assert (record["scale"], record["half_b"], record["adapter_scaled"]) == (None, None, None)
    assert "no scale is shown to keep all retention tasks" in record["why"]
    assert "Nothing is taken" in told
    # What an earlier dial took is not this one's.
    assert not (run / "adapter-scaled").exists()
    assert not (run / "dial" / "half-b").exists()
    assert (run / "dial.png").is_file()


def test_the_written_adapter_is_evaluated_and_merged_like_any_other(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, record = dialled(run, "--scales", "0.5")
    suites = Recipe.load(run / "recipe.yaml").evaluation.suites
    named = [part for one in suites for part in ("--suite", one)]
    capsys.readouterr()
    assert command("evaluate", run / "adapter-scaled", *named, "--json") == 0
    whole = json.loads(capsys.readouterr().out)["suites"][0]["tasks"][0]["interval"]
    (half_a,) = [one for one in record["half_a"] if one["name"] == record["scale"]["name"]]
    parts = [half_a["tasks"][0], record["half_b"]["tasks"][0]]
    # All items are those of both halves, and the adapter from disk is the one that was measured.
    assert sum(part["items"] for part in parts) == whole["items"]
    mean = sum(part["items"] * part["difference"] for part in parts) / whole["items"]
    assert whole["delta"] == pytest.approx(mean, abs=1e-4)
    assert command("merge", run / "adapter-scaled", "--output", tmp_path / "merged") == 0
    assert json.loads((tmp_path / "merged" / "merge.json").read_text())["verification"]["passed"]


REFUSED = {
    "no run": (["dial", "absent"], "absent: no recipe.yaml, so no run directory"),
    "no number": (["dial", "RUN", "--scales", "0.5,x"], "--scales: 'x' is no number"),
    "no scale": (["dial", "RUN", "--scales", "-1"], "--scales: -1: a scale is 0"),
    "no thirds": (["dial", "RUN", "--by-layer"], "--by-layer: the backbone has 2 decoder blocks"),
    "no gain": (["dial", "RUN", "--suite", "KEEP"], "no suite has the role gain; found: keep"),
    "too few": (["dial", "RUN", "--suite", "FEW", "--suite", "KEEP"], "aim/sums: 6 items"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_dialled_is_refused_before_anything_is_measured(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    asked = counted(monkeypatch)
    arguments, message = REFUSED[case]
    gain, keep = Recipe.load(run / "recipe.yaml").evaluation.suites
    few = tmp_path / "few.yaml"
    few.write_text(Path(gain).read_text().replace("limit: 40", "limit: 6"))
    places = {"RUN": str(run), "KEEP": keep, "FEW": str(few)}
    assert command(*(places.get(argument, argument) for argument in arguments)) == 2
    assert message in capsys.readouterr().err
    assert asked == []
    assert not (run / "dial.json").exists()


def test_dora_is_refused_before_the_backbone_is_loaded(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loading(*arguments: object) -> None:
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr(dialling, "open_run", loading)
    path = run / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    assert command("dial", run) == 2
    assert "use_dora: DoRA norms" in capsys.readouterr().err
