"""Plans with a launch file describe the processes of that file on any machine."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from lora_kit.backbone.files import resolve
from lora_kit.preflight import make_plan as planning
from lora_kit.preflight import plan_backbone
from lora_kit.preflight.device import DeviceMemory
from lora_kit.preflight.gpu_time import training_seconds
from lora_kit.preflight.launch_file import LaunchFile, read_launch_file
from lora_kit.preflight.make_plan import make_plan
from lora_kit.preflight.memory import CUDA_BASE
from lora_kit.preflight.plan_backbone import loaded_bytes
from lora_kit.preflight.show import show_plan
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import BackboneError, RecipeError

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
    for stage in ("open_for_plan", "load_suites", "open_rows"):
        monkeypatch.setattr(planning, stage, lambda *_: pytest.fail("was loaded"))
    with pytest.raises(RecipeError, match=r"training\.batch_size: .* \(got 4 examples, 8 proc"):
        make_plan(tiny_recipe, by("ddp.yaml", 8))


def with_backbone(recipe: Recipe, **fields: str) -> Recipe:
    backbone = recipe.backbone.model_copy(update=fields)
    return recipe.model_copy(update={"backbone": backbone})


def shapes_alone(tiny: Path, folder: Path) -> Path:
    """Copy a model folder without its weights."""
    folder.mkdir()
    for file in tiny.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    return folder


def test_a_model_is_planned_for_other_machines_without_its_weights(
    tiny_recipe: Recipe, tiny: Path, tmp_path: Path
) -> None:
    there = with_backbone(tiny_recipe, model=str(tiny), quantization="nf4")
    here = with_backbone(there, model=str(shapes_alone(tiny, tmp_path / "m")))
    loaded, shaped = (make_plan(one, by("ddp.yaml", 2)) for one in (there, here))
    assert loaded.without_weights is None
    assert shaped.without_weights == f"{tmp_path / 'm'} has no weights"
    one, other = loaded.on_backbone, shaped.on_backbone
    assert one is not None
    assert other is not None
    assert one.fingerprint
    assert other.fingerprint is None
    assert other.coverage == one.coverage
    assert other.memory_per_process == one.memory_per_process
    assert other.assumed_seconds == one.assumed_seconds
    assert set(one.checked.names) - set(other.checked.names) == {"device"}
    with pytest.raises(BackboneError, match=r"no model\.safetensors"):
        make_plan(here)


def test_a_model_larger_than_this_machine_is_planned_by_its_shapes(
    tiny_recipe: Recipe, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = with_backbone(tiny_recipe, model=str(tiny), quantization="none")
    files = resolve(recipe.backbone)
    size = loaded_bytes(files, recipe.backbone)
    monkeypatch.setattr(plan_backbone, "find_memory", lambda _: DeviceMemory(2 * size, size))
    assert plan_backbone.open_for_plan(files, recipe.backbone, None, is_elsewhere=True)[1] is None
    # The machine is large enough, but others hold its memory.
    monkeypatch.setattr(plan_backbone, "find_memory", lambda _: DeviceMemory(2 * size, size - 1))
    monkeypatch.setattr(plan_backbone, "load", lambda *_: pytest.fail("was loaded"))
    plan = make_plan(recipe)
    assert "the weights take" in str(plan.without_weights)
    assert plan.on_backbone is not None
    assert plan.on_backbone.forecast is not None
    assert plan.on_backbone.forecast.time is None, "nothing can be run"


def test_weights_need_room_beside_the_context_of_a_gpu(
    tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, gpu = tiny_recipe.backbone, SimpleNamespace(device=torch.device("cuda"))
    needed = loaded_bytes(resolve(spec), spec) + CUDA_BASE
    monkeypatch.setattr(plan_backbone, "process_state", lambda: gpu)
    monkeypatch.setattr(plan_backbone, "load", lambda *_: "loaded")
    for available, reason in ((needed, False), (needed - 1, True)):
        memory = DeviceMemory(2 * needed, available)
        monkeypatch.setattr(plan_backbone, "find_memory", lambda _, memory=memory: memory)
        found = plan_backbone.open_for_plan(resolve(spec), spec, None, is_elsewhere=False)[1]
        assert (found is not None) == reason


def test_time_on_gpus_is_of_the_flop_and_the_processes() -> None:
    tokens, parameters = 1_000_000, 8_000_000_000
    one = training_seconds(["H100 80 GB", "T4 16 GB"], tokens, parameters, 1, is_recomputed=False)
    assert set(one) == {"H100 80 GB"}, "the other has no known peak in bfloat16"
    assert tokens / one["H100 80 GB"] == pytest.approx(12_362, abs=1)
    eight = training_seconds(["H100 80 GB"], tokens, parameters, 8, is_recomputed=True)
    assert eight["H100 80 GB"] == pytest.approx(one["H100 80 GB"] * 1.5 / 8)
