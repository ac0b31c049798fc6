"""`monitor`: quiet without a change, an alarm behind one, a page, and results that stay."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lora_kit.cli import main
from lora_kit.pipeline.monitoring import MonitorRequest, monitor
from lora_kit.runtime.errors import DataError, EvaluationError, ReleaseError
from tests.evaluation.reports import EVIL, Page
from tests.monitoring.judged import mixed, sentences, write_judged_run, write_stream


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_judged_run(tmp_path)


def monitored(run: Path, texts: Path, folder: Path, **options: Any) -> Any:
    return monitor(MonitorRequest(run, texts, output=folder / "monitor", **options))


def ended(arguments: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as found:
        main(arguments)
    return found.value.code


def test_a_stream_without_a_change_is_quiet(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = write_stream(tmp_path / "texts.jsonl", sentences(230, 5))
    assert ended(["monitor", str(run), str(texts), "--window", "50"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "No alarm in 4 windows" in shown
    assert "30 texts wait for a full window" in shown
    assert "Page: monitor/monitor.html" in shown


def test_foreign_texts_alarm_within_three_windows_and_are_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = write_stream(tmp_path / "texts.jsonl", mixed(6, 50, change=4))
    output = tmp_path / "monitor"
    arguments = ["monitor", str(run), str(texts), "--window", "50", "--output", str(output)]
    assert ended([*arguments, "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((output / "monitor.json").read_text())
    words, length = found["signals"]
    assert found["alarm"] is True
    assert 4 <= words["alarm"] <= 6
    assert length["alarm"] is None
    assert words["above"][0] < 0.6 < words["above"][5]
    assert len(words["evidence"]) == len(found["windows"]) == 6
    assert words["evidence"][words["alarm"] - 1] >= found["limit"]
    named = " ".join(one["text"] for one in found["foreign"][:5])
    assert re.search("tumour|dosage|patient|fever|insulin|nurse|clinic|allergy|vaccine", named)
    assert ended(arguments) == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert f"differ from the reference in words and word pairs (window {words['alarm']}" in shown


def test_longer_texts_of_the_same_words_alarm_by_their_length(run: Path, tmp_path: Path) -> None:
    texts = write_stream(tmp_path / "texts.jsonl", sentences(150, 6, words=25))
    found = monitored(run, texts, tmp_path, window=50)
    assert found.alarms["length"] <= 2


def test_windows_stay_as_they_were_when_the_stream_grows(run: Path, tmp_path: Path) -> None:
    stream = mixed(6, 50, change=4)
    short = monitored(run, write_stream(tmp_path / "a.jsonl", stream[:180]), tmp_path, window=50)
    grown = monitored(run, write_stream(tmp_path / "b.jsonl", stream), tmp_path, window=50)
    for before, after in zip(short.signals, grown.signals, strict=True):
        assert before.windows == after.windows[:3]


def test_texts_are_compared_with_those_of_a_file_if_one_is_given(run: Path, tmp_path: Path) -> None:
    normal = write_stream(tmp_path / "normal.jsonl", mixed(4, 50, change=1))
    texts = write_stream(tmp_path / "texts.jsonl", mixed(4, 50, change=1)[::-1])
    assert "words" in monitored(run, texts, tmp_path, window=50).alarms
    found = monitored(run, texts, tmp_path, window=50, reference=normal)
    assert not found.alarms
    assert found.reference == (f"200 texts of {normal}",)


def test_clusters_count_once(run: Path, tmp_path: Path) -> None:
    foreign = mixed(4, 50, change=1)
    texts = write_stream(tmp_path / "texts.jsonl", foreign, conversation=lambda n: n // 10)
    alone = monitored(run, texts, tmp_path, window=50)
    found = monitored(run, texts, tmp_path, window=50, cluster="conversation")
    assert [one.units for one in alone.windows] == [50] * 4
    assert [one.units for one in found.windows] == [5] * 4
    assert found.signals[0].strongest < alone.signals[0].strongest / 2


def test_the_page_runs_nothing_and_escapes_texts(run: Path, tmp_path: Path) -> None:
    stream = [f"{EVIL} {text}" if n % 3 == 0 else text for n, text in enumerate(sentences(60, 5))]
    texts = write_stream(tmp_path / "texts.jsonl", stream)
    monitored(run, texts, tmp_path, window=20)
    written = (tmp_path / "monitor" / "monitor.html").read_text()
    page = Page(written)
    assert "<script" not in written
    assert "{{" not in re.sub(r"\{\{ 7 \* 7 \}\}", "", page.text)
    assert "<script>alert(1)</script>" in page.text
    assert "Evidence, log10" in page.text
    assert not re.search(r"\s(?:src|href)=", written)


def test_training_rows_that_are_gone_leave_the_items(run: Path, tmp_path: Path) -> None:
    texts = write_stream(tmp_path / "texts.jsonl", sentences(60, 5))
    both = monitored(run, texts, tmp_path, window=20)
    assert both.reference == ("200 of 200 training rows", "60 items of help")
    (tmp_path / "training.jsonl").unlink()
    alone = monitored(run, texts, tmp_path, window=20)
    assert alone.reference == ("60 items of help",)
    assert "no such file" in alone.notes[0]


def test_other_rows_than_those_of_the_training_are_refused(run: Path, tmp_path: Path) -> None:
    texts = write_stream(tmp_path / "texts.jsonl", sentences(60, 5))
    rows = (tmp_path / "training.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "training.jsonl").write_text("".join(rows[:-1]))
    with pytest.raises(EvaluationError, match=r"the rows of data\.train differ"):
        monitored(run, texts, tmp_path, window=20)
    (tmp_path / "training.jsonl").write_text("".join([*rows[:-1], rows[0]]))
    (run / "run.json").write_text(json.dumps({"data": {"rows": 200, "rows_digest": "other"}}))
    with pytest.raises(EvaluationError, match=r"the rows of data\.train differ"):
        monitored(run, texts, tmp_path, window=20)


def test_a_release_is_read_if_its_files_are_as_released(run: Path, tmp_path: Path) -> None:
    from lora_kit.recipe.recipe import Recipe
    from lora_kit.releasing.manifest import Manifest, write_manifest

    texts = write_stream(tmp_path / "texts.jsonl", sentences(60, 5))
    manifest = Manifest(
        name="help",
        decision="PASS",
        acceptance=None,
        backbone={},
        adapter="a",
        recipe=Recipe.load(run / "recipe.yaml").model_dump(mode="json"),
        data={"rows": 200, "replay_rows": 0},
        suites={},
        seeds={},
        training={},
        released_with={},
        works=(),
        warnings=(),
        results={},
        files={},
    )
    write_manifest(run, manifest)
    found = monitored(run, texts, tmp_path, window=20)
    assert found.reference[0] == "200 of 200 training rows"
    with (run / "evaluation" / "suites.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ReleaseError, match=r"suites.json: differs from manifest.json"):
        monitored(run, texts, tmp_path, window=20)


def test_a_reference_of_a_few_texts_is_refused(run: Path, tmp_path: Path) -> None:
    few = write_stream(tmp_path / "few.jsonl", sentences(39, 5))
    texts = write_stream(tmp_path / "texts.jsonl", sentences(60, 5))
    with pytest.raises(DataError, match=r"at least 40 \(got 39 texts of"):
        monitored(run, texts, tmp_path, window=20, reference=few)
