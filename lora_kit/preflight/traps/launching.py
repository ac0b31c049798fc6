"""Traps of launching several processes: each tried out, and whether it is caught."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from lora_kit.preflight import checks
from lora_kit.preflight.traps.specimens import (
    situation,
    specimen_backbone,
    specimen_model,
    specimen_recipe,
)
from lora_kit.preflight.traps.trap import Trap, refused
from lora_kit.runtime.launch import read_launch

TWO_ON_CPUS = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}
FSDP = {"WORLD_SIZE": "1", "ACCELERATE_USE_FSDP": "true"}
ZERO_3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


def fallback_is_there() -> bool:
    """`accelerate launch --cpu` leaves all that it was asked for aside but one process."""
    from accelerate.commands.launch import launch_command

    return "and not args.cpu" in inspect.getsource(launch_command)


def fallback_is_caught() -> bool:
    """One process instead of two, and plain data parallelism instead of FSDP, are refused."""

    def launched(environment: Mapping[str, str], kind: str) -> bool:
        launch = read_launch(environment, 1, kind)
        return refused(checks.launched_as_asked, situation(launch=launch))

    return launched(TWO_ON_CPUS, "NO") and launched(FSDP, "MULTI_CPU")


def sharded_4bit_is_caught() -> bool:
    """FSDP and ZeRO-3 with quantized weights are refused."""
    recipe = specimen_recipe("nf4")
    return all(
        refused(checks.sharded_in_full_precision, situation(recipe=recipe, launch=launch))
        for launch in (read_launch(FSDP, 1, "MULTI_GPU"), read_launch(ZERO_3, 1, "DEEPSPEED"))
    )


def shared_devices_are_caught() -> bool:
    """Weights on another device than this process's are refused."""
    elsewhere = specimen_backbone(specimen_model().to("meta"))
    return refused(checks.on_the_device_of_this_process, situation(backbone=elsewhere))


LAUNCH_TRAPS = (
    Trap(
        "accelerate falls back",
        "`accelerate launch --cpu --num_processes 2` runs one process, and FSDP on CPUs runs as "
        "plain data parallelism, both without a word.",
        "what runs is compared with what the launcher was asked for; a difference is refused",
        fallback_is_there,
        fallback_is_caught,
    ),
    Trap(
        "sharded 4-bit weights",
        "FSDP and ZeRO-3 cannot shard packed weights as they are.",
        "refused before step 1",
        None,
        sharded_4bit_is_caught,
    ),
    Trap(
        "processes on one device",
        '`device_map="auto"` puts every process on the same GPUs.',
        "the backbone is loaded to the device of its process; checked before step 1",
        None,
        shared_devices_are_caught,
    ),
)
