"""Checks of what a recipe asks for by name: its method, its ways to keep."""

from __future__ import annotations

from lora_kit.adapter.beginning_layers import beginning_layers
from lora_kit.preflight.situation import Situation
from lora_kit.recipe.adapter import NOT_MERGED, NOT_SHAPED
from lora_kit.recipe.data import SELF
from lora_kit.recipe.initialisations import FROM_ROWS, OPTION, initialisation_of
from lora_kit.recipe.objective import HEADED, REFERENCED
from lora_kit.runtime.errors import AdapterError, TrainingError
from lora_kit.training.arguments import optimizer_steps, require_trackers
from lora_kit.training.distillation import require_same_tokens
from lora_kit.training.learning_rates import is_in
from lora_kit.training.preferences.rewards import metric_or_run
from lora_kit.training.rank_allocation import phases
from lora_kit.training.retention.ewc import low_rank_updates


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
        for name in ("kl", "token_masking", "ewc", "early_stopping", "self_distillation")
        if getattr(retention, name)
    ]
    if asked and (launch.sharded or launch.deepspeed):
        raise TrainingError(
            f"retention.{asked[0]}: the base beside the adapter takes the whole model in each "
            "process, which FSDP and DeepSpeed divide. Launch with accelerate_configs/ddp.yaml, or "
            "use data.replay"
        )


def begun_where_it_can_be(situation: Situation) -> None:
    """Raises AdapterError if first factors are computed from what is divided, or not there.

    Where the adapter is attached, also if a layer has no such factors.
    """
    recipe, launch = situation.recipe, situation.launch
    kind = initialisation_of(recipe.adapter)
    if kind is None:
        return
    named = f"adapter.options.{OPTION}: {kind}"
    if launch.sharded or launch.deepspeed:
        raise AdapterError(
            f"{named} looks at whole weights, which FSDP and DeepSpeed divide. Launch with "
            "accelerate_configs/ddp.yaml"
        )
    if kind in FROM_ROWS and recipe.training.objective in HEADED:
        raise AdapterError(
            f"{named} goes by what each layer sees of every word, and some below a head see one "
            "vector a text; use pissa or olora, which go by the weights"
        )
    if kind == "lora_ga" and recipe.training.objective not in ("sft", "text"):
        raise AdapterError(
            f"{named} goes by the gradients of the objectives sft and text, and this is "
            f"{recipe.training.objective}; use eva, which goes by activations"
        )
    if situation.model is not None:
        beginning_layers(situation.model, recipe.adapter, kind)


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


def rates_of_what_is_trained(situation: Situation) -> None:
    """Raises TrainingError if a rate is that of a module in which nothing is trained."""
    names = [name for name, p in situation.attached.named_parameters() if p.requires_grad]
    for module in situation.recipe.training.lr_multipliers:
        if not any(is_in(name, module) for name in names):
            inside = sorted({part for name in names for part in name.split(".")[:-1]} - {"default"})
            known = [part for part in inside if not part.isdigit()]
            raise TrainingError(
                f"training.lr_multipliers.{module}: nothing is trained in a module of that name; found: "
                f"{', '.join(known)}"
            )


def consolidated_whole(situation: Situation) -> None:
    """Raises TrainingError if something is trained that `retention.ewc` does not hold."""
    if situation.recipe.retention.ewc is None:
        return
    updates = low_rank_updates(situation.attached).values()
    held = {id(factor) for update in updates for factor in (update.first, update.second)}
    for name, parameter in situation.attached.named_parameters():
        if parameter.requires_grad and id(parameter) not in held:
            raise TrainingError(
                f"retention.ewc: holds LoRA's updates of linear layers, and {name} is "
                "trained besides; leave it out of adapter.target_modules and adapter.options, or use "
                "retention.kl, which holds what the model says"
            )


def stepped_by_us(situation: Situation) -> None:
    """Raises TrainingError for what acts on gradients between the backward pass and the step."""
    launch, recipe = situation.launch, situation.recipe
    asked = {
        "training.gradual_unfreezing_steps": recipe.training.gradual_unfreezing_steps is not None,
        "adapter.method: adalora": recipe.adapter.method == "adalora",
        "training.gradient_conflict": recipe.training.gradient_conflict is not None,
    }
    if recipe.training.gradient_conflict is not None and launch.processes > 1:
        raise TrainingError(
            "training.gradient_conflict: the tasks' gradients are looked at in one process, and "
            f"{launch.processes} are launched; leave it out, or start one"
        )
    for field, is_asked in asked.items():
        if is_asked and (launch.sharded or launch.deepspeed):
            raise TrainingError(
                f"{field} acts on whole gradients before each step, which FSDP divides and "
                "DeepSpeed has used by then. Launch with accelerate_configs/ddp.yaml"
            )


def long_enough_to_choose_ranks(situation: Situation) -> None:
    """Raises AdapterError if a training has no step in which adalora could take ranks."""
    recipe = situation.recipe
    if recipe.adapter.method == "adalora":
        phases(recipe.adapter.options, optimizer_steps(len(situation.examples), recipe.training))


def within_the_window(situation: Situation) -> None:
    """Raises AdapterError if virtual tokens and an example are more than the backbone reads."""
    recipe = situation.recipe
    count, longest = recipe.adapter.virtual_tokens, recipe.data.max_length
    config = situation.loaded.model.config.get_text_config()
    window = getattr(config, "max_position_embeddings", None)
    if window and count + longest > window:
        raise AdapterError(
            f"adapter.options.num_virtual_tokens: {count} and an example of data.max_length: "
            f"{longest} are more than the {window} positions of this backbone; lower one of them"
        )
    sliding = getattr(config, "sliding_window", None)
    if sliding and count + longest > sliding:
        # Past it, how many of them a token sees hangs on the padding between.
        raise AdapterError(
            f"adapter.options.num_virtual_tokens: {count} and an example of data.max_length: "
            f"{longest} are more than the {sliding} tokens that layers of this backbone look back "
            "on; lower one of them"
        )


def encoded_whole(situation: Situation) -> None:
    """Raises TrainingError if a launch divides the weights that virtual tokens go through."""
    launch, method = situation.launch, situation.recipe.adapter.method
    if launch.sharded or launch.deepspeed:
        raise TrainingError(
            f"adapter.method: {method}: its tokens go through the backbone in a pass of their own, "
            "for which FSDP and DeepSpeed gather nothing. Launch with accelerate_configs/ddp.yaml"
        )


def whole_where_it_is_divided(situation: Situation) -> None:
    """Raises TrainingError for what is made for one stack of blocks where there are two."""
    recipe, launch = situation.recipe, situation.launch
    training, start = recipe.training, initialisation_of(recipe.adapter)
    replay = recipe.data.replay
    asked = {
        f"training.objective: {training.objective}": training.objective != "sft",
        f"adapter.method: {recipe.adapter.method}": recipe.adapter.trains_weights,
        f"adapter.options.{OPTION}: {start}": start in FROM_ROWS,
        "training.gradual_unfreezing_steps": training.gradual_unfreezing_steps is not None,
        "training.layerwise_lr_decay": training.layerwise_lr_decay is not None,
        "training.distillation": training.distillation is not None,
        "data.packing": recipe.data.packing,
        "data.replay.source: self": replay is not None and replay.source == SELF,
        "retention.self_distillation": recipe.retention.self_distillation is not None,
        "FSDP or DeepSpeed": launch.sharded or launch.deepspeed,
    }
    for what, is_asked in asked.items():
        if is_asked:
            raise TrainingError(
                f"{what} is made for a backbone of one stack of blocks, and "
                f"{situation.loaded.files.reference} has an encoder and a decoder. Possible: the "
                "objective sft with LoRA and other methods that change layers"
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
    if objective in (*LEFT_OUT, "reward") and several:
        raise TrainingError(
            f"training.objective: {objective} is trained by one process, and {launch.processes} "
            "are launched; start it without a launch file"
        )


def rewarded_by_what_there_is(situation: Situation) -> None:
    """Raises RecipeError for a reward that is no metric, nor the run of a reward model."""
    spec = situation.recipe.grpo
    assert spec is not None  # where the check applies
    for name in spec.rewards:
        metric_or_run(name)


def logged_where_it_can_be(situation: Situation) -> None:
    """Raises TrainingError if a tracker is not installed."""
    require_trackers(situation.recipe.training)


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
    "grpo": "the sampling of answers, reward models, and all answers of a prompt but one: a step "
    "takes at least `grpo.num_generations` times as long",
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
