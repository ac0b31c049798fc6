"""DeepSpeed's ZeRO in processes on CPUs: the adapter of data parallelism, and its checkpoints."""

import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_kit.recipe.recipe import Recipe
from tests.integration.test_processes import LORA_KIT, ROOT, SETTINGS, launched, start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("deepspeed") is None,
        reason="DeepSpeed is not installed (`make test-slow` installs the extra `deepspeed`)",
    ),
]
SCRIPT = Path(__file__).with_name("deepspeed_on_cpu.py")
BFLOAT16 = ("--set", "backbone.dtype=bfloat16")
# Each process has its own random numbers.
NO_DROPOUT = ("--set", "adapter.dropout=0")
CUT = 4
# Measured after ten steps, with entries of up to 0.13: 0 for ZeRO-2, 8e-8 for ZeRO-3, else 5e-8.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def place(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe of ten steps, two learning rates, and dropout.

    The last step of an epoch has one row, which leaves a second process without any.
    """
    folder = tmp_path_factory.mktemp("deepspeed")
    rows = [{"prompt": f"{n} plus {n}?", "completion": f"It is {2 * n}."} for n in range(21)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:17]))
    (folder / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[17:]))
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "backbone": {"model": str(tiny), "quantization": "none", "dtype": "float32"},
            "adapter": {"rank": 4, "alpha": 8, "dropout": 0.2},
            "data": {
                "train": [{"source": str(folder / "train.jsonl")}],
                "validation": [{"source": str(folder / "held.jsonl")}],
                "max_length": 128,
            },
            "training": {
                "batch_size": 4,
                "epochs": 2.0,
                "learning_rate": 1e-3,
                "loraplus_lr_ratio": 4.0,
                "weight_decay": 0.01,
                "save_steps": 1,
                "save_total_limit": 100,
            },
        }
    )
    (folder / "tiny.yaml").write_text(recipe.to_yaml())
    return folder


def zero(
    stage: int, place: Path, name: str, *options: str, processes: int = 2, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Train with `--resume` in processes of DeepSpeed."""
    asked = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = ["train", "tiny.yaml", "--resume", "--output", name, *options]
    return subprocess.run(
        launched(processes, str(SCRIPT), *command),
        cwd=place,
        env=os.environ | SETTINGS | asked | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def parallel(place: Path) -> Path:
    """The run of two processes without DeepSpeed."""
    done = start(2, ["train", "tiny.yaml", "--output", "parallel"], place, LORA_KIT)
    assert done.returncode == 0, done.stderr
    return place / "parallel"


@pytest.fixture(scope="module")
def whole(place: Path) -> Any:
    """A function that returns the uninterrupted run of a stage."""

    def trained(stage: int, *options: str) -> Path:
        name = f"whole-{stage}{'-bfloat16' if options else ''}"
        if not (place / name).exists():
            done = zero(stage, place, name, *options)
            assert done.returncode == 0, done.stderr
        return place / name

    return trained


def cut(stage: int, place: Path, name: str, *options: str) -> Path:
    """A run of two processes, one of which has received a signal in a step."""
    done = zero(stage, place, name, *options, INTERRUPT=str(CUT))
    assert done.returncode != 0
    assert f"after step {CUT} of 10. Fix: rerun with --resume" in done.stderr
    files = {path.suffix for path in (place / name / "checkpoints").glob("*/*")}
    assert files == {".safetensors", ".json"}
    return place / name


def adapter(run: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(run / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    return tensors


def steps(run: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same(one: Path, other: Path, tolerance: float) -> None:
    left, right = adapter(one), adapter(other)
    assert left.keys() == right.keys()
    assert any(bool(tensor.any()) for name, tensor in left.items() if "lora_B" in name)
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], tensor, rtol=0, atol=tolerance)
    for first, second in zip(steps(one), steps(other), strict=True):
        assert second == pytest.approx(first, rel=tolerance, abs=tolerance)


@pytest.mark.covers("lora", on=("none",), launcher="ZeRO-2")
def test_zero_2_trains_the_adapter_of_data_parallelism(parallel: Path, whole: Any) -> None:
    assert_same(parallel, whole(2), TOLERANCE)


@pytest.mark.covers("lora", on=("none",), launcher="ZeRO-3")
def test_zero_3_trains_the_adapter_of_data_parallelism(parallel: Path, whole: Any) -> None:
    assert_same(parallel, whole(3), TOLERANCE)


@pytest.mark.parametrize(("stage", "options"), [(2, ()), (3, BFLOAT16)])
def test_an_interrupted_training_goes_on_bit_for_bit(
    place: Path, whole: Any, stage: int, options: tuple[str, ...]
) -> None:
    """In bfloat16 too: the weights in the model are rounded, those of the checkpoint are not."""
    uninterrupted = whole(stage, *options)
    run = cut(stage, place, f"bits-{stage}", *options)
    assert not (run / "adapter").exists()
    done = zero(stage, place, run.name, *options)
    assert done.returncode == 0, done.stderr
    assert f"resuming from step-{CUT:06d}" in done.stderr
    assert_same(uninterrupted, run, 0)
    rounded = [tensor.bfloat16().float() for tensor in adapter(run).values()]
    assert not all(map(torch.equal, adapter(run).values(), rounded))


def test_a_checkpoint_goes_on_under_another_launcher(place: Path) -> None:
    """In one process without DeepSpeed, and in three, which divide none of the tensors evenly."""
    alone = ["train", "tiny.yaml", "--resume", *NO_DROPOUT, "--output"]
    run = cut(2, place, "cut", *NO_DROPOUT)
    for name in ("on-1", "on-3"):
        shutil.copytree(run, place / name)
    for name in ("alone", "on-1"):
        done = start(1, [*alone, name], place)
        assert done.returncode == 0, done.stderr
        assert (f"resuming from step-{CUT:06d}" in done.stderr) == (name == "on-1")
    done = zero(3, place, "on-3", *NO_DROPOUT, processes=3)
    assert done.returncode == 0, done.stderr
    assert f"resuming from step-{CUT:06d}" in done.stderr
    for name in ("on-1", "on-3"):
        assert_same(place / "alone", place / name, TOLERANCE)


def test_a_process_that_dies_ends_the_others_and_is_named(place: Path) -> None:
    done = zero(2, place, "dead", DIE="3")
    assert done.returncode != 0
    # The launcher may end it before it has said so.
    assert done.stderr.count("another process is gone") <= 1
    assert "lora_kit/pipeline" not in done.stderr, done.stderr
    assert "rank      : 1 (local_rank: 1)\n  exitcode  : -9" in done.stderr
    assert (place / "dead" / "checkpoints" / "step-000002").is_dir()
    assert not (place / "dead" / "adapter").exists()
