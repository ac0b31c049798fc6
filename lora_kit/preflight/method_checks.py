"""Checks of what a recipe asks for by name: its method, its ways to keep."""

from __future__ import annotations

from lora_kit.adapter_spec import NOT_MERGED, NOT_SHAPED
from lora_kit.errors import AdapterError, TrainingError
from lora_kit.preflight.situation import Situation


def kept_where_it_can_be(situation: Situation) -> None:
    """Raises TrainingError if a way to keep takes the whole model, which no process has."""
    launch, retention = situation.launch, situation.recipe.retention
    asked = [
        name for name in ("anchor", "mask", "consolidation", "budget") if getattr(retention, name)
    ]
    if asked and (launch.sharded or launch.deepspeed):
        raise TrainingError(
            f"retention.{asked[0]}: the base beside the adapter takes the whole model in each "
            "process, which FSDP and DeepSpeed divide. Launch with accelerate_configs/ddp.yaml, or "
            "use data.replay"
        )


def computes_in_float32(situation: Situation) -> None:
    """Raises AdapterError if whole copies of layers would not be computed as they are kept."""
    spec, dtype = situation.recipe.adapter, situation.loaded.spec.dtype
    copies = spec.trains_weights or spec.method == "ln_tuning"
    if dtype != "float32" and (copies or spec.options.get("modules_to_save")):
        what = f"method: {spec.method}" if copies else "options.modules_to_save"
        raise AdapterError(
            f"adapter.{what}: trains copies of whole layers, which are kept in float32, and "
            f"backbone.dtype is {dtype}: PEFT's layers do not cast between them. Set "
            "backbone.dtype: float32, or use lora"
        )


def trained_with_its_head(situation: Situation) -> None:
    """Raises TrainingError if a launch divides what a classifier is, or shares what is cheap."""
    launch, recipe = situation.launch, situation.recipe
    if launch.sharded or launch.deepspeed:
        raise TrainingError(
            "training.objective: classification: a head is kept whole in each process, which FSDP "
            "and DeepSpeed would divide. Launch with accelerate_configs/ddp.yaml"
        )
    if recipe.adapter.method == "head" and launch.processes > 1:
        raise TrainingError(
            "adapter.method: head: some thousand weights on finished features are trained by one "
            f"process; {launch.processes} were started. Leave the launcher out"
        )


def stepped_by_us(situation: Situation) -> None:
    """Raises TrainingError for what acts on gradients between the backward pass and the step."""
    launch, recipe = situation.launch, situation.recipe
    asked = {
        "training.unfreeze_steps": recipe.training.unfreeze_steps is not None,
        "adapter.method: adalora": recipe.adapter.method == "adalora",
    }
    for field, is_asked in asked.items():
        if is_asked and (launch.sharded or launch.deepspeed):
            raise TrainingError(
                f"{field} acts on whole gradients before each step, which FSDP divides and "
                "DeepSpeed has used by then. Launch with accelerate_configs/ddp.yaml"
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
