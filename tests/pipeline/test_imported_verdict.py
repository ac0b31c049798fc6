"""Verdicts on results of other programs, by the command."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_kit.cli import main
from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.pipeline.evaluation import evaluate
from lora_kit.pipeline.imported_verdict import judge_results
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.statistics.decisions import non_inferiority, superiority
from tests.bigbench import bigbench_rows
from tests.evaluation.imported.logging_lm_eval import CHOICE, log_samples, write_task


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Scores of 300 items in 100 clusters, of which the second file changes a tenth."""
    draw = random.Random(1)
    base = [{"id": n, "score": int(draw.random() < 0.6), "page": n // 3} for n in range(300)]
    changed = [{**row, "score": 1 - row["score"]} if draw.random() < 0.1 else row for row in base]
    return write(tmp_path / "base.jsonl", base), write(tmp_path / "adapter.jsonl", changed)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def scores(path: Path) -> list[float]:
    return [json.loads(line)["score"] for line in path.open()]


def test_the_verdict_is_that_of_the_paired_scores(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = files
    output = tmp_path / "out"
    options = ["--base", base, "--adapter", adapter, "--output", output, "--json"]
    differences = [b - a for a, b in zip(scores(base), scores(adapter), strict=True)]
    alone, pages = ([str(n // size) for n in range(300)] for size in (1, 3))

    status = run("verdict", *options, "--margin", "0.1", "--cluster", "page")
    [task] = json.loads(capsys.readouterr().out)["suites"][0]["tasks"]
    expected = non_inferiority(differences, pages, 0.05, 0.1, True)
    assert (
        (status, task["decision"], task["margin"])
        == (0, expected.decision, 0.1)
        == (0, "PASS", 0.1)
    )
    assert task["interval"]["low"] == pytest.approx(expected.interval.low)
    assert task["interval"]["clusters"] == 100

    status = run("verdict", *options, "--alpha", "0.1")
    [task] = json.loads(capsys.readouterr().out)["suites"][0]["tasks"]
    gain = superiority(differences, alone, 0.1, True)
    assert (status, task["decision"]) == (4, gain.decision) == (4, "INCONCLUSIVE")
    assert task["p"] == pytest.approx(gain.p)
    assert task["items_needed"] > 300

    assert run("verdict", *options[:-1], "--lower-is-better", "--margin", "0.001") == 4
    assert "Verdict: INCONCLUSIVE" in capsys.readouterr().out
    assert "results" in (output / "report.html").read_text()


def test_it_is_verified_and_a_changed_ledger_is_not(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    judge_results(*files, output, margin=0.1)
    main_status = run("verify", output)
    assert (main_status, capsys.readouterr().out.split(": ")[1].strip()) == (
        0,
        "the verdict, PASS, follows from the ledger",
    )
    other = tmp_path / "other"
    judge_results(files[0], files[0], other, margin=0.1)
    (other / "ledger.parquet").replace(output / "ledger.parquet")
    assert run("verify", output) == 2
    assert "does not follow from the ledger" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--margin", "-1"], "--margin: Input should be greater than 0 (got -1.0)"),
        (["--alpha", "0.7"], "--alpha: Input should be less than 0.5 (got 0.7)"),
        (["--metric", "acc"], "base.jsonl:1: acc: missing (got id, score, page)"),
    ],
)
def test_what_cannot_be_judged_writes_nothing(
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    reason: str,
) -> None:
    output = tmp_path / "out"
    named = ["--base", files[0], "--adapter", files[1], "--output", output]
    assert run("verdict", *named, *options) == 2
    assert reason in " ".join(capsys.readouterr().err.split())
    assert not output.exists()


@pytest.mark.slow
def test_samples_of_lm_eval_have_the_verdict_of_our_own_run(smollm: Path, tmp_path: Path) -> None:
    """The real model and an adapter that changes some answers, on a task of lm-eval."""
    pytest.importorskip("lm_eval")
    adapter = random_adapter(smollm, tmp_path / "adapter")
    task = write_task(tmp_path / "quiz.yaml", CHOICE, bigbench_rows("intent_recognition")[:48])
    for name, options in {"base": {}, "adapter": {"peft": str(adapter)}}.items():
        own = {"pretrained": str(smollm), "dtype": "float32", **options}
        log_samples(task, tmp_path / name, "hf", **own)
    theirs = judge_results(tmp_path / "base", tmp_path / "adapter", tmp_path / "theirs", margin=0.1)
    suite = tmp_path / "suite.yaml"
    spec = {"name": "quiz", "kind": "lm_eval", "source": str(task), "margin": 0.1}
    suite.write_text(yaml.safe_dump({"name": "results", "role": "retention", "tasks": [spec]}))
    ours = evaluate(
        adapter,
        [str(suite)],
        BackboneSpec.model_validate({"model": str(smollm), "dtype": "float32"}),
        tmp_path / "ours",
        stopping="none",
    )
    a, b = theirs.verdict.suites[0].tasks[0], ours.verdict.suites[0].tasks[0]
    assert 0 < a.won + a.lost < 48

    def compared(one: TaskVerdict) -> tuple[object, ...]:
        flips = (one.won, one.lost, one.missing)
        return one.decision, flips, one.items_needed, [measure.name for measure in one.measures]

    def numbers(one: TaskVerdict) -> tuple[float, ...]:
        return one.base, one.adapter, one.interval.low, one.interval.high, one.p

    assert compared(a) == compared(b)
    assert numbers(a) == pytest.approx(numbers(b))
    assert a.calibration is not None
    assert b.calibration is not None
    assert a.calibration.ece.delta == pytest.approx(b.calibration.ece.delta, abs=1e-4)


def random_adapter(model: Path, folder: Path) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["v_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(folder)
    return folder
