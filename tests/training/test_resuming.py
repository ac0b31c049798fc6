"""Choice of the run directory, and the checks before a run is resumed."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_kit import pipeline
from lora_kit.backbone.files import BackboneFiles
from lora_kit.pipeline import training
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runs.session import open_run
from lora_kit.runtime import launch
from lora_kit.runtime.errors import DataError, RecipeError, TrainingError
from lora_kit.runtime.launch import Launch
from lora_kit.runtime.machine import GpuPeak
from lora_kit.training import resuming
from lora_kit.training.resuming import recorded_result
from lora_kit.training.trainer import TrainingResult
from tests.training.cut import STEPS, cut_off, losses, sha256, with_training


def test_another_recipe_does_not_go_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(monkeypatch, recipe, tmp_path / "run", 2)
    other = with_training(recipe, learning_rate=0.5)
    with pytest.raises(RecipeError, match=r"training.learning_rate: 0.001 -> 0.5"):
        pipeline.train(other, tmp_path / "run", resume=True)
    data = Path(recipe.data.train[0].source)
    lines = data.read_text().splitlines(keepends=True)
    shutil.copy(data, tmp_path / "kept.jsonl")
    data.write_text("".join(lines[1:] + lines[:1]))
    with pytest.raises(RecipeError, match=r"the rows of data\.train"):
        pipeline.train(recipe, tmp_path / "run", resume=True)


def test_a_run_of_another_kind_of_machine_goes_on(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Attention and packing of a GPU are defaults; what was written in the recipe is none."""
    cut_off(monkeypatch, recipe, tmp_path / "run", 2)
    file = tmp_path / "run" / "recipe.yaml"
    here = file.read_text()
    there = here.replace("attention: sdpa", "attention: varlen").replace(
        "packing: false", "packing: unpadded"
    )
    assert there.count("varlen") == there.count("unpadded") == 1
    file.write_text(there)
    pipeline.train(recipe, tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert "begun on another kind of machine (backbone.attention: 'varlen' -> 'sdpa'; " in said
    assert "data.packing: 'unpadded' -> False)" in said
    assert open_run(tmp_path / "run").backbone.spec.attention == "sdpa"
    chosen = recipe.model_copy(
        update={"backbone": recipe.backbone.model_copy(update={"attention": "eager"})}
    )
    with pytest.raises(RecipeError, match=r"backbone\.attention: 'varlen' -> 'eager'"):
        pipeline.train(chosen, tmp_path / "run", resume=True)
    cut_off(monkeypatch, recipe, tmp_path / "other", 2)
    file = tmp_path / "other" / "recipe.yaml"
    file.write_text(here.replace("attention: sdpa", "attention: eager"))
    with pytest.raises(RecipeError, match=r"backbone\.attention: 'eager' -> 'sdpa'"):
        pipeline.train(recipe, tmp_path / "other", resume=True)


def test_other_rows_and_texts_to_look_at_do_not_go_on(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of different rows, or of different retention texts, would be compared."""
    held_out, texts = tmp_path / "held_out.jsonl", tmp_path / "texts.jsonl"
    asked = [{"prompt": f"Where is {n}?", "completion": f"At {n}."} for n in range(4)]
    told = [{"text": f"A story of {n} and of {n + 1}."} for n in range(8)]
    for path, rows in ((held_out, asked), (texts, told)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = tiny_recipe.model_dump(mode="json")
    document["data"]["validation"] = [{"source": str(held_out)}]
    document["training"] |= {"save_steps": 1}
    budget = {"source": str(texts), "rows": 8, "margin": 9.0, "steps": 1}
    recipe = Recipe.model_validate({**document, "retention": {"early_stopping": budget}})
    cut_off(monkeypatch, recipe, tmp_path / "run", 2)
    for path, what in (
        (held_out, r"the rows of data\.validation"),
        (texts, r"the texts of retention\.early_stopping"),
    ):
        before = path.read_text()
        path.write_text(before.replace("1", "7"))
        with pytest.raises(RecipeError, match=rf"cannot resume: the training changed \({what}\)"):
            pipeline.train(recipe, tmp_path / "run", resume=True)
        path.write_text(before)
    assert pipeline.train(recipe, tmp_path / "run", resume=True).result.steps == 4


def test_what_cannot_end_under_a_launcher_is_refused_before_it_begins(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(monkeypatch, recipe, tmp_path / "run", 2)
    monkeypatch.setattr(launch, "current_launch", lambda: Launch(fsdp=True, fsdp_version=2))
    with pytest.raises(
        TrainingError, match=r"^lora-kit compare-backbones: needs the full model.* FSDP or ZeRO-3"
    ):
        pipeline.compare_backbones(recipe, [recipe.backbone.model], tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_a_finished_run_is_not_trained_again(recipe: Recipe, tmp_path: Path) -> None:
    first = pipeline.train(recipe, tmp_path / "run").result
    stamp = (tmp_path / "run" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    again = pipeline.train(recipe, tmp_path / "run", resume=True).result
    assert again.to_dict() == first.to_dict()
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("field", "value", "change"),
    [
        ("quantization", "nf4", "'none' -> 'nf4'"),
        ("dtype", "bfloat16", "'float32' -> 'bfloat16'"),
        ("attention", "eager", "'sdpa' -> 'eager'"),
        ("model", "smollm2-135m-instruct", ".* -> 'smollm2-135m-instruct'"),
    ],
)
def test_a_finished_run_of_another_backbone_is_not_taken_for_this_one(
    reward_run: Path, field: str, value: str, change: str
) -> None:
    recipe = RunDirectory(reward_run).load_recipe()
    changed = recipe.backbone.model_copy(update={field: value})
    with pytest.raises(RecipeError, match=rf"changed \(backbone\.{field}: {change}\)\. Fix"):
        pipeline.train(recipe.model_copy(update={"backbone": changed}), reward_run, resume=True)


def test_a_finished_run_of_another_branch_is_not_taken_for_this_one(
    reward_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RunDirectory(reward_run).load_recipe()
    files = BackboneFiles(recipe.backbone.model, "c" * 40, Path(recipe.backbone.model))
    monkeypatch.setattr(training, "resolve", lambda _: files)
    changed = recipe.backbone.model_copy(update={"revision": "v2"})
    with pytest.raises(RecipeError, match=rf"backbone\.revision: None -> '{'c' * 40}'"):
        pipeline.train(recipe.model_copy(update={"backbone": changed}), reward_run, resume=True)


def test_a_finished_run_of_other_rows_is_not_taken_for_this_one(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.train(recipe, tmp_path / "run")
    data = Path(recipe.data.train[0].source)
    text = data.read_text()
    data.write_text(text.replace("plus", "and"))
    with pytest.raises(
        RecipeError, match=r"cannot resume: the training changed \(the rows of data\.train"
    ):
        pipeline.train(recipe, tmp_path / "run", resume=True)
    data.unlink()
    capsys.readouterr()
    pipeline.train(recipe, tmp_path / "run", resume=True)
    stderr = " ".join(capsys.readouterr().err.split())
    assert "the rows cannot be compared with those of the training: data.train.0.source" in stderr
    data.write_text(text)
    pipeline.train(recipe, tmp_path / "run", resume=True)
    assert "cannot be compared" not in capsys.readouterr().err


def test_a_refusal_leaves_no_run_directory_and_a_training_takes_its_own(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    strict = recipe.data.model_copy(update={"max_length": 3})
    with pytest.raises(DataError, match="no supervised token"):
        pipeline.train(recipe.model_copy(update={"data": strict}))
    assert list(Path().iterdir()) == []
    seen = resuming.new_run_directory

    def taken_meanwhile(*arguments: Any) -> Any:
        chosen = seen(*arguments)
        chosen.root.mkdir(parents=True)
        return chosen

    monkeypatch.setattr(resuming, "new_run_directory", taken_meanwhile)
    assert pipeline.train(recipe).session.run.root == Path("runs/tiny-2")
    assert list(Path("runs/tiny").iterdir()) == []


@pytest.mark.slow
def test_two_launches_in_the_same_instant_have_a_run_each(recipe: Recipe, tmp_path: Path) -> None:
    """Each launch has two processes, which have to agree."""
    (tmp_path / "tiny.yaml").write_text(with_training(recipe, epochs=1.0).to_yaml())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", "-m", "lora_kit", "train", "tiny.yaml"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    launches = [subprocess.Popen(command, cwd=tmp_path, env=environment) for _ in range(2)]
    assert [launch.wait() for launch in launches] == [0, 0]
    runs = sorted((tmp_path / "runs").iterdir())
    assert [run.name for run in runs] == ["tiny", "tiny-2"]
    assert [len(losses(run)) for run in runs] == [STEPS // 2, STEPS // 2]
    assert sha256(runs[0]) == sha256(runs[1])


@pytest.mark.parametrize("gpu", [None, GpuPeak(allocated=5, reserved=7)])
def test_a_recorded_result_says_which_memory_it_measured(
    tmp_path: Path, gpu: GpuPeak | None
) -> None:
    result = TrainingResult(1, 1, 9, 2.0, 4.5, 1.0, 0.5, None, None, 3, gpu)
    run = RunDirectory(tmp_path)
    run.adapter.mkdir()
    run.record.write_text(json.dumps({"training": result.to_dict()}))
    assert recorded_result(run) == result
    record = result.to_dict()
    del record["peak_gpu_memory"]  # as an earlier version wrote it
    run.record.write_text(json.dumps({"training": record}))
    assert recorded_result(run) == replace(result, peak_gpu_memory=None)
