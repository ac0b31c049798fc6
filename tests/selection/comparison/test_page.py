"""Page of a comparison: what is on it, nothing in it runs or is fetched, names are escaped."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from lora_kit.cli import main
from lora_kit.pipeline.run_comparison import compare_runs
from lora_kit.runs.directory import RunDirectory
from lora_kit.selection.comparison.curves import Losses, plot_curves, read_losses
from lora_kit.selection.comparison.recipes import recipe_rows, setup_rows
from tests.evaluation.reports import EVIL, Page
from tests.selection.comparison.made_up import (
    GAIN,
    KEEP,
    evaluated,
    scores,
    suite,
    write_results,
    write_run,
)

BASE = scores([4.0 + n % 3 for n in range(30)])
QUIZ = [scores([float(n % 10 < right) for n in range(60)]) for right in (6, 7, 9)]


def two_runs(tmp_path: Path, **fields: str) -> list[Path]:
    runs = []
    for n, name in enumerate(("first", "second")):
        run = write_run(tmp_path / name, 60, n, adapter={"rank": 8 * (n + 1)})
        own = scores([3.0 - n + i * (n + 2) % 5 / 10 for i in range(30)])
        results = [(GAIN, BASE, own), (KEEP, QUIZ[0], QUIZ[n + 1])]
        write_results(run / "evaluation", results, **fields)  # type: ignore[arg-type]
        runs.append(run)
    return runs


def test_the_command_writes_the_page_and_prints_the_differences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [str(one) for one in two_runs(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main(["compare", *runs])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "second is better than first on a-gain/loss-task by" in shown
    assert "Page: compare.html" in shown
    with pytest.raises(SystemExit) as ended:
        main(["compare", *runs, "--json", "--output", "other.html"])
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["runs"]] == ["first", "second"]
    assert found["recipes"]["adapter.rank"] == ["8", "16"]
    assert {one["better"] for one in found["differences"]} == {"second"}
    assert (tmp_path / "other.html").read_text() == (tmp_path / "compare.html").read_text()
    with pytest.raises(SystemExit) as ended:
        main(["compare", runs[0]])
    assert ended.value.code == 2
    mine = tmp_path / "recipe.yaml"
    mine.write_text("name: mine")
    with pytest.raises(SystemExit) as ended:
        main(["compare", *runs, "--output", str(mine)])
    assert ended.value.code == 2
    assert mine.read_text() == "name: mine"


def test_the_page_holds_what_a_reader_asks_for(tmp_path: Path) -> None:
    compare_runs(two_runs(tmp_path), tmp_path / "compare.html")
    page = (tmp_path / "compare.html").read_text()
    text = " ".join(Page(page).text.split())
    assert "second is better than first on a-gain/loss-task by 1.000 nats/token" in text
    for heading in ("Recipes", "Verdicts", "Paired differences", "Training", "Items that differ"):
        assert f"<h2>{heading}</h2>" in page
    # Six items of sixty flipped one way on each ten; the first ones are there with both outputs.
    assert "12 only 2second correct, first 10 shown" in text
    assert "adapter said 0.0" in text
    assert "adapter said 1.0" in text
    # One line a run and plot, with its number beside it and dashes of its own.
    assert len(re.findall(r'<g class="s[01]">.*<path class="line"', page)) == 4
    assert page.count('<text class="label"') == 4


def test_nothing_on_the_page_runs_or_is_fetched(tmp_path: Path) -> None:
    compare_runs(two_runs(tmp_path), tmp_path / "compare.html")
    page = (tmp_path / "compare.html").read_text()
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe", "a", "form"} & set(parsed.tags)
    fetching = {"src", "href", "style", "srcset", "action"}
    assert not [name for name, _ in parsed.attributes if name in fetching or name.startswith("on")]
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert "default-src 'none'" in page
    assert "script-src" not in page
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(styles) == 2
    for style in styles:
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page


def test_hostile_names_and_outputs_are_text(tmp_path: Path) -> None:
    evil = suite(name=EVIL)
    folder = "<script>alert(2)<" + "b>"
    runs = []
    for n in range(2):
        run = write_run(tmp_path / f"{folder}{n}", 3, n, **{EVIL: EVIL + str(n)})
        results = [(evil, BASE, scores([3.0 - n + i % 5 / 10 for i in range(30)]))]
        write_results(run / "evaluation", results, text=EVIL)
        runs.append(run)
    compare_runs(runs, tmp_path / "compare.html")
    page = (tmp_path / "compare.html").read_text()
    parsed = Page(page)
    assert not {"script", "b>", "img"} & set(parsed.tags)
    assert "<script>alert(1)" in parsed.text
    assert "<script>alert(2)<b>0" in parsed.text
    assert page.count("</svg>") == page.count("<svg")
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_more_rows_than_a_reader_takes_in_are_folded(tmp_path: Path) -> None:
    results = [
        [(GAIN, BASE, scores([3.0 - n / 10 + i % 5 / 10 for i in range(30)]))] for n in range(9)
    ]
    runs = [evaluated(tmp_path / f"r{n}", one) for n, one in enumerate(results)]
    found = compare_runs(runs, tmp_path / "compare.html")
    assert len(found.shown) == 15
    assert len(found.differences) == 36
    page = (tmp_path / "compare.html").read_text()
    assert "With 9 runs, only the pairs with the first run and with" in page
    assert "over all 36 comparisons" in page
    assert page.count('<details class="pair">') == 15


def test_fields_that_only_name_a_run_do_not_differ(tmp_path: Path) -> None:
    options = ({}, {"training": {"epochs": 2, "rate": 1e-4}}, {"training": None, "tags": ["x", 1]})
    runs = [RunDirectory(write_run(tmp_path / f"r{n}", **one)) for n, one in enumerate(options)]
    assert {row.name: row.values for row in recipe_rows(runs)} == {
        "training.epochs": ("—", "2", "—"),
        "training.rate": ("—", "0.0001", "—"),
        "training": ("—", "—", "none"),
        "tags": ("—", "—", "x, 1"),
    }
    assert recipe_rows(runs[:1] * 2) == ()


def test_the_setup_has_the_versions_that_differ_alone() -> None:
    records = [{"versions": {"torch": "2", "peft": v}, "machine": {"cores": 2}} for v in ("1", "2")]
    rows = {row.name: row.values for row in setup_rows(records, ["a" * 64, ""])}
    assert rows["adapter (sha256)"] == ("a" * 10, "—")
    assert rows["peft"] == ("1", "2")
    assert rows["seed"] == rows["steps"] == ("—", "—")
    assert "torch" not in rows
    assert "machine: cores" not in rows


def test_curves_have_the_losses_of_the_training(tmp_path: Path) -> None:
    run = RunDirectory(write_run(tmp_path / "run", 60))
    with run.metrics.open("a") as metrics:
        metrics.write('{"step": 61, "loss": NaN}\n{"step": 62, "dri')
    losses = read_losses(run, run.load_record())
    assert len(losses.training) == 60
    assert [step for step, _ in losses.validation] == [0, 25, 50, 60]
    assert losses.validation[-1] == (60, 2.0)
    training, validation = plot_curves({0: losses, 3: losses, 4: Losses([], [])})
    assert [(one.run, one.style) for one in training.lines] == [(0, 0), (3, 1)]
    # Labels of equal lines do not overlap.
    assert abs(training.lines[0].label_y - training.lines[1].label_y) >= 12
    assert (training.window, validation.window) == (3, 1)
    assert len(validation.lines[0].dots) == 4
    assert plot_curves({0: Losses([], [])}) == ()
    assert len(plot_curves({0: Losses([(1, 2.0)], [])})) == 1
