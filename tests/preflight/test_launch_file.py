"""Bundled launch files are read and launched by accelerate as described."""

import json
import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import (
    _filter_args,
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)
from torch.distributed.run import config_from_args, get_args_parser

from lora_kit.preflight.checks import run_checks
from lora_kit.preflight.context import PreflightContext
from lora_kit.preflight.launch_file import LaunchFile, read_launch_file, refuse_impossible_launch
from lora_kit.preflight.show_estimate import launch_label
from lora_kit.preflight.traps.specimens import specimen_recipe
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import LoraKitError, RecipeError
from lora_kit.runtime.launch import Launch, read_launch

FOLDER = Path(__file__).parents[2] / "accelerate_configs"
FILES = sorted(FOLDER.glob("*.yaml"))
# Kind, processes, machines, FSDP version, ZeRO stage.
EXPECTED = {
    "cpu.yaml": ("NO", 1, 1, 0, 0),
    "single-gpu.yaml": ("NO", 1, 1, 0, 0),
    "ddp.yaml": ("MULTI_GPU", 8, 1, 0, 0),
    "fsdp2.yaml": ("FSDP", 8, 1, 2, 0),
    "fsdp2-qlora-offload.yaml": ("FSDP", 2, 1, 2, 0),
    "fsdp2-qlora.yaml": ("FSDP", 2, 1, 2, 0),
    "hsdp.yaml": ("FSDP", 16, 2, 2, 0),
    "multi-node.yaml": ("FSDP", 16, 2, 2, 0),
    "deepspeed-zero2.yaml": ("DEEPSPEED", 8, 1, 0, 2),
    "deepspeed-zero3.yaml": ("DEEPSPEED", 8, 1, 0, 3),
}
HEAD = ("--main_process_ip", "head", "--main_process_port", "29511")
THERE = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def validated(path: Path, *options: str) -> Namespace:
    """Return the arguments of a launch, completed from the file by accelerate."""
    parser = launch_command_parser()
    command = ["--config_file", str(path), *options, "-m", "lora_kit", "plan", "quickstart"]
    arguments, defaults, _ = _validate_launch_command(parser.parse_args(command))
    arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return arguments


def environment(arguments: Namespace) -> dict[str, str]:
    """Return the environment that accelerate and torchrun set for the launched processes."""
    # Same order as in `launch_command` of accelerate.
    if arguments.use_deepspeed:
        made = prepare_deepspeed_cmd_env(arguments)[1]
    elif arguments.use_fsdp or arguments.multi_gpu:
        made = prepare_multi_gpu_env(arguments)
    else:
        return prepare_simple_launcher_cmd_env(arguments)[1]
    machines, of_each, _ = meeting(arguments)
    return made | {"WORLD_SIZE": str(machines * of_each)}


def meeting(arguments: Namespace) -> tuple[int, int, Any]:
    """Return machines, processes per machine and the configuration of torchrun."""
    config, _, _ = config_from_args(
        _filter_args(
            arguments,
            get_args_parser(),
            ["--training_script", "lora_kit", "--training_script_args", "plan"],
        )
    )
    return config.max_nodes, config.nproc_per_node, config


def test_every_file_is_known_here() -> None:
    assert [path.name for path in FILES] == sorted(EXPECTED)


@THERE
def test_the_file_says_what_is_launched(path: Path) -> None:
    kind, processes, machines, version, stage = EXPECTED[path.name]
    assert load_config_from_file(str(path)).distributed_type.value == kind
    file = read_launch_file(path)
    assert (file.launch.kind, file.launch.processes, file.machines) == (kind, processes, machines)
    assert (file.launch.fsdp_version, file.launch.zero_stage) == (version, stage)

    several = HEAD if machines > 1 else ()
    arguments = validated(path, *several)
    launched = read_launch(environment(arguments), file.launch.processes, file.launch.kind)
    assert launched == file.launch


@THERE
def test_the_file_names_no_key_that_accelerate_does_not_take(path: Path) -> None:
    """Accelerate sets unknown keys of a section silently and never reads them."""
    known = vars(launch_command_parser().parse_args(["-m", "lora_kit"]))
    given = yaml.safe_load(path.read_text())
    for section in ("fsdp_config", "deepspeed_config", "parallelism_config"):
        assert given.get(section, {}).keys() <= known.keys()


@THERE
def test_the_file_begins_with_what_it_is_for_and_its_command(path: Path) -> None:
    comment = path.read_text().split("compute_environment")[0]
    assert f"accelerate launch --config_file accelerate_configs/{path.name}" in comment


def test_two_machines_meet_where_the_command_line_says() -> None:
    """Accelerate 1.15 ignores `rdzv_backend` and `same_network` in files."""
    path = FOLDER / "multi-node.yaml"
    options = (*HEAD, "--rdzv_backend", "c10d")
    for rank in ("0", "1"):
        arguments = validated(path, "--machine_rank", rank, *options)
        prepare_multi_gpu_env(arguments)
        machines, of_each, config = meeting(arguments)
        assert (machines, of_each) == (2, 8)
        assert (config.rdzv_backend, config.rdzv_endpoint) == ("c10d", "head:29511")
    assert validated(path, *HEAD).rdzv_backend == "static"
    assert all(option in path.read_text() for option in ("--machine_rank", "--rdzv_backend c10d"))


def written(tmp_path: Path, name: str, **changed: Any) -> Path:
    """Write a bundled file with some fields changed; `None` removes a field."""
    given = yaml.safe_load((FOLDER / name).read_text()) | changed
    path = tmp_path / name
    path.write_text(yaml.safe_dump({k: v for k, v in given.items() if v is not None}))
    return path


def sizes(**of: int) -> dict[str, int]:
    """Return a section `parallelism_config`."""
    return {f"parallelism_config_{name}_size": size for name, size in of.items()}


def refusal(path: Path, recipe: Recipe) -> str:
    with pytest.raises(RecipeError) as caught:
        refuse_impossible_launch(read_launch_file(path), recipe)
    assert caught.value.status == 2
    return str(caught.value)


def wanted(quantization: str = "none", batch_size: int = 16) -> Recipe:
    recipe = specimen_recipe(quantization)
    training = recipe.training.model_copy(update={"batch_size": batch_size})
    return recipe.model_copy(update={"training": training})


@THERE
def test_a_plain_recipe_can_be_launched_by_every_file(path: Path) -> None:
    refuse_impossible_launch(read_launch_file(path), wanted())


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
@THERE
def test_quantized_weights_go_where_each_gpu_holds_all_of_them_and_4_bits_into_shards(
    path: Path, quantization: str
) -> None:
    file = read_launch_file(path)
    if not file.launch.sharded or (file.launch.fsdp and quantization != "int8"):
        refuse_impossible_launch(file, wanted(quantization))
        return
    message = refusal(path, wanted(quantization))
    assert "backbone.quantization: FSDP shards only weights in 4 bits" in message
    assert f"(got {quantization} under {launch_label(file).split()[0]})" in message
    assert "accelerate_configs/ddp.yaml" in message


@pytest.mark.parametrize(
    ("section", "value", "part"),
    [
        ("retention", {"kl": {"source": "python-reference"}}, "retention.kl: "),
        ("retention", {"entropy_weighting": {}, "non_target_kl": {}}, "retention.non_target_kl: "),
        ("adapter", {"method": "adalora"}, "adapter.method: adalora needs full gradients"),
        ("adapter", {"method": "prompt_tuning", "options": {"num_virtual_tokens": 4}}, "virtual"),
        ("adapter", {"options": {"init_lora_weights": "pissa"}}, "init_lora_weights: pissa"),
        ("preference", {}, "training.objective: dpo: the number of forward passes of a step"),
        ("reward", {}, "training.objective: reward keeps the full head in each process"),
    ],
)
@pytest.mark.parametrize("name", ["fsdp2.yaml", "deepspeed-zero2.yaml"])
def test_what_training_would_refuse_under_the_launch_is_refused_by_the_plan(
    name: str, section: str, value: dict[str, Any], part: str
) -> None:
    document = wanted().model_dump(mode="json", exclude_unset=True) | {section: value}
    if section in ("preference", "reward"):
        document["training"] = {"objective": "dpo" if section == "preference" else section}
    recipe = Recipe.model_validate(document)
    assert part in refusal(FOLDER / name, recipe)
    with pytest.raises(LoraKitError, match=re.escape(part)):
        run_checks(PreflightContext(recipe, read_launch_file(FOLDER / name).launch))


@pytest.mark.parametrize(
    ("adapter", "part"),
    [
        ({"options": {"use_dora": True}}, "adapter.options.use_dora: DoRA reads"),
        ({"options": {"modules_to_save": ["lm_head"]}}, "adapter.options.modules_to_save: trains"),
        ({"method": "trainable_tokens"}, "adapter.method: trainable_tokens: trains weights outs"),
    ],
)
def test_what_4_bits_in_shards_cannot_train_is_refused_there_alone(
    adapter: dict[str, Any], part: str
) -> None:
    document = wanted("nf4").model_dump(mode="json", exclude_unset=True) | {"adapter": adapter}
    recipe = Recipe.model_validate(document)
    assert part in refusal(FOLDER / "fsdp2-qlora.yaml", recipe)
    refuse_impossible_launch(read_launch_file(FOLDER / "ddp.yaml"), recipe)
    document["backbone"]["quantization"] = "none"
    plain = Recipe.model_validate(document)
    refuse_impossible_launch(read_launch_file(FOLDER / "fsdp2.yaml"), plain)


def test_a_batch_of_fewer_examples_than_processes_is_refused() -> None:
    message = refusal(FOLDER / "ddp.yaml", wanted(batch_size=4))
    assert (
        "training.batch_size: fewer examples in a step than processes (got 4 examples, 8 processes)"
        in message
    )


@pytest.mark.parametrize(
    ("name", "changed", "part"),
    [
        ("fsdp2.yaml", {"use_cpu": True}, "use_cpu: true with distributed_type: FSDP"),
        ("ddp.yaml", {"use_cpu": True}, "use_cpu: true with distributed_type: MULTI_GPU"),
        ("cpu.yaml", {"num_processes": 2}, "accelerate starts one process"),
        ("multi-node.yaml", {"num_machines": 3}, "is not divisible by num_machines: 3"),
        (
            "ddp.yaml",
            {"gpu_ids": "0,1"},
            "gpu_ids: fewer GPUs than processes per machine (got 2 GPUs for 8 processes)",
        ),
        ("ddp.yaml", {"mixed_precision": "bf16"}, "backbone.dtype: float32"),
        ("fsdp2.yaml", {"parallelism_config": sizes(tp=2)}, "parallelism_config: tensor"),
        ("hsdp.yaml", {"parallelism_config": sizes(dp_shard=8, cp=2)}, "parallelism_config: tens"),
        (
            "hsdp.yaml",
            {"num_processes": 24},
            "dp_replicate_size x dp_shard_size must be num_processes, and dp_shard_size at least 2 "
            "(got 2 x 8 for 24 processes)",
        ),
        (
            "hsdp.yaml",
            {"parallelism_config": sizes(dp_replicate=16)},
            "(got 16 x 1 for 16 processes)",
        ),
        (
            "ddp.yaml",
            {"parallelism_config": sizes(dp_replicate=8)},
            "parallelism_config: replicas of shards need FSDP (got distributed_type: MULTI_GPU)",
        ),
        (
            "deepspeed-zero2.yaml",
            {"deepspeed_config": {"zero_stage": 4}},
            "zero_stage: unknown stage (got 4)",
        ),
        (
            "fsdp2.yaml",
            {"fsdp_config": {"fsdp_version": 1}},
            "fsdp_version: FSDP 1 flattens a layer's weights to one dtype",
        ),
        (
            "fsdp2.yaml",
            {"fsdp_config": {"fsdp_version": 2, "fsdp_auto_wrap_policy": "NO_WRAP"}},
            "fsdp_auto_wrap_policy: without wrapped layers, the complete model is gathered at "
            "once (got NO_WRAP)",
        ),
    ],
)
def test_impossible_settings_are_refused_by_field(
    tmp_path: Path, name: str, changed: dict[str, Any], part: str
) -> None:
    assert part in refusal(written(tmp_path, name, **changed), wanted())


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "fsdp2.yaml", use_cpu=True, fsdp_config={"fsdp_version": 1})
    message = refusal(path, wanted("int8", batch_size=4))
    assert "5 problems" in message
    assert len(re.findall(r"^  ", message, flags=re.MULTILINE)) == 5


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("distributed_type: MULTI_GPU\n", "got num_processes: -1"),
        (
            "distributed_type: MEGATRON_LM\nnum_processes: 8\n",
            r"distributed_type: not supported \(got MEGATRON_LM\)",
        ),
        ("distributed_type: MULTI_GPU\nnum_procceses: 8\n", "num_procceses"),
        ("distributed_type: MULTI_GPU\nnum_processes: many\n", "cannot read it"),
        ("{", "cannot read it"),
        ("- a\n", "cannot read it"),
    ],
)
def test_a_file_that_says_nothing_sensible_is_refused(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "launch.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=part):
        read_launch_file(path)
    with pytest.raises(RecipeError, match="does not exist"):
        read_launch_file(tmp_path / "absent.yaml")


def test_deepspeeds_own_file_says_its_stage(tmp_path: Path) -> None:
    own = tmp_path / "deepspeed.json"
    own.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    config = {"deepspeed_config_file": str(own)}
    path = written(tmp_path, "deepspeed-zero2.yaml", deepspeed_config=config)
    assert read_launch_file(path).launch.zero_stage == 3
    unsaid = written(tmp_path, "deepspeed-zero3.yaml", deepspeed_config={})
    file = read_launch_file(unsaid)
    assert file.launch.zero_stage == 2
    launched = read_launch(environment(validated(unsaid)), 8, "DEEPSPEED")
    assert launched.zero_stage == 2, "the default of accelerate"


def test_a_launch_is_called_by_its_usual_name() -> None:
    names = {name: launch_label(read_launch_file(FOLDER / name)) for name in EXPECTED}
    assert names["ddp.yaml"] == "data parallel"
    assert names["fsdp2.yaml"] == "FSDP 2"
    assert names["hsdp.yaml"] == "FSDP 2, 2 replicas"
    assert names["deepspeed-zero3.yaml"] == "ZeRO-3"
    assert names["cpu.yaml"] == "single process"


def test_shards_in_main_memory_are_read() -> None:
    offloaded = {path.name for path in FILES if read_launch_file(path).sharding.offloaded}
    assert offloaded == {"fsdp2-qlora-offload.yaml"}


def test_reading_is_not_changed_by_what_runs_here() -> None:
    file = read_launch_file(FOLDER / "ddp.yaml")
    assert isinstance(file, LaunchFile)
    assert file.launch == replace(Launch(kind="MULTI_GPU"), asked=8, processes=8)
    assert file.to_dict()["launch"]["processes"] == 8
