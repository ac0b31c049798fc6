"""Traps of launching several processes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from lora_kit.preflight import launch_checks
from lora_kit.preflight.traps.specimens import (
    specimen_backbone,
    specimen_context,
    specimen_model,
    specimen_recipe,
)
from lora_kit.preflight.traps.trap import Trap, is_refused
from lora_kit.runtime.launch import read_launch, require_sharded

TWO_ON_CPUS = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}
FSDP = {"WORLD_SIZE": "1", "ACCELERATE_USE_FSDP": "true"}
ZERO_3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


def fallback_is_present() -> bool:
    """Return true if `accelerate launch --cpu` ignores every request but one process."""
    from accelerate.commands.launch import launch_command

    return "and not args.cpu" in inspect.getsource(launch_command)


def fallback_is_guarded() -> bool:
    """Return true if one process instead of two, and MULTI_CPU instead of FSDP, are refused."""

    def refused(environment: Mapping[str, str], kind: str) -> bool:
        launch = read_launch(environment, 1, kind)
        return is_refused(launch_checks.refuse_launch_fallback, specimen_context(launch=launch))

    return refused(TWO_ON_CPUS, "NO") and refused(FSDP, "MULTI_CPU")


def whole_4bit_is_present() -> bool:
    """Return true if accelerate leaves 4-bit weights that are stored as bytes out of FSDP 2."""
    from accelerate.utils import fsdp_utils

    return "incompatible_params4bit" in inspect.getsource(fsdp_utils.fsdp2_prepare_model)


def whole_4bit_is_guarded() -> bool:
    """Return true if a model in no shard is refused under FSDP, and int8 under any sharding."""
    launches = (read_launch(FSDP, 1, "MULTI_GPU"), read_launch(ZERO_3, 1, "DEEPSPEED"))
    int8 = [specimen_context(recipe=specimen_recipe("int8"), launch=one) for one in launches]
    return is_refused(require_sharded, launches[0], specimen_model()) and all(
        is_refused(launch_checks.refuse_sharded_quantization, one) for one in int8
    )


def shared_devices_are_guarded() -> bool:
    """Return true if weights on the device of another process are refused."""
    context = specimen_context(backbone=specimen_backbone(specimen_model().to("meta")))
    return is_refused(launch_checks.require_weights_on_process_device, context)


LAUNCH_TRAPS = (
    Trap(
        "accelerate falls back",
        "`accelerate launch --cpu --num_processes 2` silently runs one process, and FSDP on CPUs "
        "silently runs as plain data parallelism.",
        "the running launch is compared with the requested one; a difference is refused",
        fallback_is_present,
        fallback_is_guarded,
    ),
    Trap(
        "sharded 4-bit weights",
        "Under FSDP 2 accelerate leaves 4-bit weights whole on each process; stored as floats, a "
        "GPU may change them.",
        "sharded as bytes before accelerate; weights that are not in shards, and other quantized "
        "weights, are refused",
        whole_4bit_is_present,
        whole_4bit_is_guarded,
    ),
    Trap(
        "processes on one device",
        '`device_map="auto"` puts every process on the same GPUs.',
        "each process loads the backbone to its own device; checked before step 1",
        None,
        shared_devices_are_guarded,
    ),
)
