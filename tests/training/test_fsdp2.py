"""FSDP 2 through Accelerate, as the launch files start it, on CPU processes instead of GPUs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lora_kit import pipeline
from lora_kit.recipe.recipe import Recipe
from tests.standins.gloo_fsdp2 import BETWEEN
from tests.training.cut import cut_off

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "accelerate_configs"
SETTINGS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
STEPS = 4


def start(
    processes: int, place: Path, *commands: list[str], **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run commands of the stand-in, one after the other, in so many processes."""
    joined = [part for command in commands for part in (BETWEEN, *command)][1:]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *launcher, "-m", "tests.standins.gloo_fsdp2", *joined],
        cwd=place,
        env=os.environ | SETTINGS | settings,
        capture_output=True,
        text=True,
        check=False,
    )


def launched(processes: int, place: Path, *commands: list[str]) -> None:
    done = start(processes, place, *commands)
    assert done.returncode == 0, done.stderr


def train(launcher: str, name: str, *fields: str, file: str = "tiny.yaml") -> list[str]:
    """Return a command of the stand-in: a training by a launch file, or data parallel."""
    # An absolute path stays as it is.
    path = launcher if launcher == "none" else str(CONFIGS / launcher)
    options = [part for field in fields for part in ("--set", field)]
    return [path, "train", file, "--output", name, *options]


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def trained(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "run.json").read_text())["training"]
    return record


def losses(run: Path) -> list[tuple[float, ...]]:
    """Return step and loss of each line of the metrics, validation losses included."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line.get("loss", line.get("validation_loss"))) for line in lines]


def same(one: Path, other: Path) -> None:
    """Assert that two trainings are equal to the last bit."""
    left, right = adapter(one), adapter(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())
    assert any(bool(tensor.any()) for name, tensor in left.items() if "lora_B" in name)
    assert losses(one) == losses(other)
    for name in ("validation_before", "validation_after", "tokens"):
        assert trained(one)[name] == trained(other)[name]


def close(one: Path, other: Path) -> None:
    """Assert that two trainings are equal but for the order of their sums."""
    left, right = adapter(one), adapter(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], tensor, rtol=1e-3, atol=1e-4)
    assert any(bool(tensor.any()) for name, tensor in left.items() if "lora_B" in name)
    ours, theirs = (list(zip(*losses(run), strict=True)) for run in (other, one))
    assert ours[0] == theirs[0]
    assert ours[1] == pytest.approx(theirs[1], rel=1e-3)


def cut_in_step_2(processes: int, place: Path, launcher: str) -> Path:
    """Return a run that a signal interrupted in its second step."""
    done = start(processes, place, train(launcher, "cut"), SIGNAL_AT_STEP="2")
    assert done.returncode != 0
    assert "after step 2 of 4. Fix: rerun with --resume" in done.stderr, done.stderr
    assert (place / "cut" / "checkpoints" / "step-000002" / "optimizer.safetensors").is_file()
    return place / "cut"


def resumed(processes: int, place: Path, *commands: list[str]) -> None:
    """Run trainings that go on from the second step."""
    done = start(processes, place, *([*command, "--resume"] for command in commands))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("resuming from step-000002") == len(commands), done.stderr


@pytest.fixture
def recipe(tiny_recipe: Recipe, tmp_path: Path) -> Recipe:
    """Four steps on a model of random weights with tied embeddings, in bfloat16."""
    changed = tiny_recipe.model_dump(mode="json")
    changed["backbone"] |= {"quantization": "nf4", "dtype": "bfloat16"}
    changed["training"] |= {"gradient_checkpointing": True, "save_steps": 1, "eval_steps": 2}
    # Clipping adds the squares of shards in another order.
    changed["training"]["max_grad_norm"] = 100.0
    made = Recipe.model_validate(changed)
    (tmp_path / "tiny.yaml").write_text(made.to_yaml())
    row = {"prompt": "zxq", "completion": "Quartz! Jungle; Vivid / Fjord #"}
    (tmp_path / "unlike.jsonl").write_text(
        json.dumps(row) + "\n" + json.dumps(row | {"prompt": "k"})
    )
    return made


@pytest.fixture
def place(recipe: Recipe, tmp_path: Path) -> Path:
    return tmp_path


@pytest.mark.slow
@pytest.mark.covers("lora", on=("nf4",), launcher="FSDP 2")
def test_four_bit_weights_in_shards_train_as_whole_ones(place: Path) -> None:
    """Equal to data parallel: adapter, losses and validation losses, to the last bit.

    One of two processes has no element of a factor of rank 1.
    """
    rank = "adapter.rank=1"
    launched(2, place, train("none", "whole", rank), train("fsdp2-qlora.yaml", "shards", rank))
    same(place / "whole", place / "shards")
    assert len(losses(place / "shards")) == STEPS + 2


VARIANTS = {
    "not quantized": ("backbone.quantization=none", "backbone.dtype=float32"),
    "fp4": ("backbone.quantization=fp4",),
    "no checkpointing": ("training.gradient_checkpointing=false", "adapter.dropout=0.1"),
    "packed": ("data.packing=true", "training.max_tokens_per_batch=64"),
    # The loss of rows that have nothing in common with the others ends higher than it was.
    "best": (
        "training.keep_best=true",
        "training.learning_rate=3",
        "data.validation=[{source: unlike.jsonl}]",
    ),
}


@pytest.mark.slow
@pytest.mark.covers("lora", on=("none", "fp4"), launcher="FSDP 2")
@pytest.mark.parametrize("tied", [True, False])
def test_each_way_to_train_is_that_of_data_parallelism(
    place: Path, recipe: Recipe, tied: bool
) -> None:
    if not tied:
        untie(Path(recipe.backbone.model), place)
    model = [] if tied else [f"backbone.model={place / 'untied'}"]
    commands = []
    for number, fields in enumerate(VARIANTS.values()):
        commands.append(train("none", f"whole-{number}", *fields, *model))
        commands.append(train("fsdp2.yaml", f"shards-{number}", *fields, *model))
    launched(2, place, *commands)
    for number, name in enumerate(VARIANTS):
        same(place / f"whole-{number}", place / f"shards-{number}")
        kept = [trained(place / f"{way}-{number}")["kept_step"] for way in ("whole", "shards")]
        assert (kept[0] < STEPS) == (name == "best")
        assert kept[1] == kept[0]


def untie(model: Path, place: Path) -> None:
    """Write the model with a head of its own."""
    from transformers import LlamaForCausalLM

    shutil.copytree(model, place / "untied")
    untied = LlamaForCausalLM.from_pretrained(model)
    untied.config.tie_word_embeddings = False
    torch.manual_seed(0)
    untied.lm_head.weight = torch.nn.Parameter(torch.randn_like(untied.lm_head.weight) * 0.02)
    untied.save_pretrained(place / "untied")


@pytest.mark.slow
def test_packed_weights_that_cannot_be_divided_evenly_are_padded(place: Path) -> None:
    """Three processes: 4096 bytes are 1366, 1366 and 1364."""
    field = "training.batch_size=3"
    launched(3, place, train("none", "whole", field), train("fsdp2.yaml", "shards", field))
    close(place / "whole", place / "shards")


@pytest.mark.slow
def test_shards_in_main_memory_train_as_whole_weights(place: Path) -> None:
    launched(2, place, train("none", "whole"), train("fsdp2-qlora-offload.yaml", "shards"))
    same(place / "whole", place / "shards")


@pytest.mark.slow
def test_an_interrupted_training_goes_on_in_any_number_of_processes(
    place: Path,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    launched(2, place, train("fsdp2.yaml", "whole"))
    shutil.copytree(cut_in_step_2(2, place, "fsdp2.yaml"), place / "alone")
    cut_off(monkeypatch, recipe, place / "widened", 2)
    resumed(2, place, train("fsdp2.yaml", "cut"), train("fsdp2.yaml", "widened"))
    same(place / "whole", place / "cut")
    capsys.readouterr()
    pipeline.train(recipe, place / "alone", resume=True)
    assert "resuming from step-000002" in capsys.readouterr().err
    for name in ("alone", "widened"):
        assert [step for step, _ in losses(place / name)] == [1, 2, 2, 3, 4, 4]
        ours = [loss for _, loss in losses(place / name)]
        assert ours == pytest.approx([loss for _, loss in losses(place / "whole")], rel=1e-3)


@pytest.mark.slow
def test_replicas_of_shards_train_as_data_parallelism(place: Path) -> None:
    """Two replicas of two shards each, in 4 bits and not; a checkpoint goes on in two processes."""
    given = yaml.safe_load((CONFIGS / "hsdp.yaml").read_text())
    sizes = given["parallelism_config"]
    sizes["parallelism_config_dp_shard_size"] = sizes["parallelism_config_dp_replicate_size"] = 2
    file = place / "hsdp.yaml"
    file.write_text(yaml.safe_dump(given | {"num_machines": 1, "num_processes": 4}))
    plain = "backbone.quantization=none"
    launched(
        4,
        place,
        train("none", "whole"),
        train(str(file), "hybrid"),
        train("none", "whole-plain", plain),
        train(str(file), "hybrid-plain", plain),
    )
    for whole, hybrid in (("whole", "hybrid"), ("whole-plain", "hybrid-plain")):
        close(place / whole, place / hybrid)
    cut_in_step_2(4, place, str(file))
    resumed(2, place, train("fsdp2-qlora.yaml", "cut"))
    close(place / "whole", place / "cut")
