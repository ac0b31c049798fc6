"""Checks of what a recipe asks for by name: its method, its ways to keep."""

from __future__ import annotations

from lora_kit.adapter_spec import NOT_MERGED, NOT_SHAPED
from lora_kit.errors import TrainingError
from lora_kit.preflight.situation import Situation


def kept_where_it_can_be(situation: Situation) -> None:
    """Raises TrainingError if a way to keep takes the whole model, which no process has."""
    launch, retention = situation.launch, situation.recipe.retention
    asked = [name for name in ("anchor", "mask", "budget") if getattr(retention, name)]
    if asked and (launch.sharded or launch.deepspeed):
        raise TrainingError(
            f"retention.{asked[0]}: the base beside the adapter takes the whole model in each "
            "process, which FSDP and DeepSpeed divide. Launch with accelerate_configs/ddp.yaml, or "
            "use data.replay"
        )


def can_be_merged(situation: Situation) -> str | None:
    """Warns of a method that ends with the evaluation."""
    method = situation.recipe.adapter.method
    why = NOT_MERGED.get(method)
    if why is None:
        return None
    return (
        f"adapter.method: {method} cannot be merged ({why}): it is trained and evaluated, but "
        "`lora-kit merge` and `release` will refuse it"
    )


def estimated_as_it_is(situation: Situation) -> str | None:
    """Warns of a method whose memory is another one's in the estimate."""
    method = situation.recipe.adapter.method
    if method not in NOT_SHAPED:
        return None
    return (
        f"adapter.method: {method} cannot be made of shapes alone; its memory is estimated as that "
        "of LoRA of rank 16"
    )
