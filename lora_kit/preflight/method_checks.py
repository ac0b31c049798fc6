"""Checks of what a recipe asks for by name: its method, its ways to keep."""

from __future__ import annotations

from lora_kit.adapter_spec import NOT_MERGED, NOT_SHAPED
from lora_kit.errors import AdapterError, TrainingError
from lora_kit.objective_spec import REFERENCED
from lora_kit.preflight.situation import Situation
from lora_kit.training.distillation import require_same_tokens


def kept_where_it_can_be(situation: Situation) -> None:
    """Raises TrainingError if a way to keep takes the whole model, which no process has."""
    launch, retention = situation.launch, situation.recipe.retention
    if situation.recipe.training.distillation and (launch.sharded or launch.deepspeed):
        raise TrainingError(
            "training.distillation: the teacher is whole in each process, which FSDP and DeepSpeed "
            "divide. Launch with accelerate_configs/ddp.yaml"
        )
    asked = [
        name
        for name in ("anchor", "mask", "consolidation", "budget", "own_words")
        if getattr(retention, name)
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


def taught_in_its_tokens(situation: Situation) -> None:
    """Raises TrainingError if the teacher has other tokens."""
    spec = situation.recipe.training.distillation
    if spec is not None:
        require_same_tokens(spec, situation.loaded)


def stepped_by_us(situation: Situation) -> None:
    """Raises TrainingError for what acts on gradients between the backward pass and the step."""
    launch, recipe = situation.launch, situation.recipe
    asked = {
        "training.unfreeze_steps": recipe.training.unfreeze_steps is not None,
        "adapter.method: adalora": recipe.adapter.method == "adalora",
    }
    if recipe.training.conflict is not None and launch.processes > 1:
        raise TrainingError(
            "training.conflict: the tasks' gradients are looked at in one process, and "
            f"{launch.processes} are launched; leave it out, or start one"
        )
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


def in_one_process(situation: Situation) -> None:
    """Raises TrainingError for what is made for one process where there are several."""
    launch, objective = situation.launch, situation.recipe.training.objective
    several = launch.processes > 1 or launch.sharded or launch.deepspeed
    if objective in LEFT_OUT and several:
        raise TrainingError(
            f"training.objective: {objective} is trained by one process, and {launch.processes} "
            "are launched; start it without a launch file"
        )


def scored_by_the_base_head(situation: Situation) -> None:
    """Raises AdapterError if the output head has an adapter, which TRL's objectives refuse."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    recipe = situation.recipe
    head = situation.attached.get_output_embeddings()
    if recipe.training.objective in REFERENCED and isinstance(head, BaseTunerLayer):
        raise AdapterError(
            f"adapter: {recipe.adapter.method} on the output head (or an embedding that is one "
            f"with it): with the objective {recipe.training.objective} TRL takes log probabilities "
            "past it. Leave lm_head and the embedding out, or use another method"
        )


# Of each objective, what an estimate that is made for sft leaves out.
LEFT_OUT = {
    "dpo": "the forward pass of the reference policy, about a quarter of a step",
    "kto": "two forward passes of the reference policy and one for the divergence, about as long "
    "again",
    "orpo": "the logits of prompts, which its cross-entropy takes: more memory, for each token of "
    "a forward pass 4 bytes a word of the vocabulary and more",
    "grpo": "the sampling of answers, and all answers of a prompt but one: a step takes at least "
    "`grpo.generations` times as long",
}


def estimated_as_another_objective(situation: Situation) -> str | None:
    """Warns of what the estimate of memory and time leaves out."""
    training = situation.recipe.training
    objective = training.objective
    if training.distillation:
        teacher = training.distillation.teacher.model
        return f"training.distillation: the estimate leaves out the teacher, {teacher}"
    if objective not in LEFT_OUT:
        return None
    return f"training.objective: {objective}: the estimate leaves out {LEFT_OUT[objective]}"


def estimated_as_it_is(situation: Situation) -> str | None:
    """Warns of a method whose memory is another one's in the estimate."""
    method = situation.recipe.adapter.method
    if method not in NOT_SHAPED:
        return None
    return (
        f"adapter.method: {method} cannot be made of shapes alone; its memory is estimated as that "
        "of LoRA of rank 16"
    )
