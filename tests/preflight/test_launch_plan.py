"""Plans with a launch file describe the processes of that file on any machine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lora_kit.preflight import plan as planning
from lora_kit.preflight.launch_file import LaunchFile, read_launch_file
from lora_kit.preflight.memory import CUDA_BASE
from lora_kit.preflight.plan import make_plan
from lora_kit.preflight.show import show_plan
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import RecipeError

FOLDER = Path(__file__).parents[2] / "accelerate_configs"


def by(name: str, processes: int) -> LaunchFile:
    read = read_launch_file(FOLDER / name)
    return replace(read, launch=replace(read.launch, asked=processes, processes=processes))


def test_the_plan_is_of_the_processes_that_would_be_started(
    tiny_recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, divided = (make_plan(tiny_recipe, by(name, 2)) for name in ("ddp.yaml", "fsdp2.yaml"))
    assert whole.micro_batch_size == 2, "a GPU takes its half of a step at once"
    assert whole.on_backbone is not None
    assert divided.on_backbone is not None
    assert whole.on_backbone.forecast is None, "how fast this machine is says nothing of those"
    one, other = (plan.on_backbone.memory_per_process for plan in (whole, divided))
    assert one is not None
    assert other is not None
    assert one.device == "cuda"
    assert one.components["libraries"] == CUDA_BASE
    frozen = "other frozen weights"
    assert other.components[frozen] == -(-one.components[frozen] // 2)

    made = json.loads(json.dumps(divided.to_dict()))
    assert made["launch"]["launch"]["fsdp_version"] == 2
    assert made["memory_per_process"]["total"] == other.total
    show_plan(divided, Console(width=120))
    shown = " ".join(capsys.readouterr().out.split())
    assert "fsdp2.yaml: 2 processes (FSDP 2); memory of each process:" in shown
    assert "gathered weights" in shown


def test_what_cannot_work_is_refused_before_anything_is_loaded(
    tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in ("load", "load_suites", "open_rows"):
        monkeypatch.setattr(planning, stage, lambda *_: pytest.fail("was loaded"))
    with pytest.raises(RecipeError, match=r"training\.batch_size: .* \(got 4 examples, 8 proc"):
        make_plan(tiny_recipe, by("ddp.yaml", 8))
