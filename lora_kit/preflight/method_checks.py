"""Checks of the recipe's method, retention, initialisation and objective."""

from __future__ import annotations

from lora_kit.adapter.initialized_layers import layers_to_initialize
from lora_kit.adapter.saved_configuration import PREFIX
from lora_kit.preflight.context import PreflightContext
from lora_kit.recipe.adapter import NOT_MERGED, NOT_SHAPED
from lora_kit.recipe.data import SELF
from lora_kit.recipe.initialisations import FROM_ROWS, OPTION, initialisation_of
from lora_kit.recipe.objective import HEADED, LANGUAGE_MODELING, REFERENCED
from lora_kit.runtime.errors import AdapterError, TrainingError
from lora_kit.training.arguments import require_trackers
from lora_kit.training.distillation import require_same_tokens
from lora_kit.training.learning_rates import belongs_to_module
from lora_kit.training.preferences.rewards import resolve_reward
from lora_kit.training.rank_allocation import pruning_phases
from lora_kit.training.retention.ewc import lora_updates
from lora_kit.training.step_sizes import optimizer_steps


def refuse_unavailable_initialisation(context: PreflightContext) -> None:
    """Refuse with AdapterError an initialisation that this launch or objective cannot compute.

    Once the adapter is attached, also refuse layers for which the initialisation has no factors.
    """
    recipe, launch = context.recipe, context.launch
    kind = initialisation_of(recipe.adapter)
    if kind is None:
        return
    field = f"adapter.options.{OPTION}: {kind}"
    if launch.partitioned:
        raise AdapterError(
            f"{field} needs full weight matrices, which FSDP and DeepSpeed shard. Fix: launch with "
            "accelerate_configs/ddp.yaml"
        )
    if kind in FROM_ROWS and recipe.training.objective in HEADED:
        raise AdapterError(
            f"{field} needs each layer's activations at every token, and some layers below a head "
            "see only one vector per text. Fix: use pissa or olora, which need only the weights"
        )
    if kind == "lora_ga" and recipe.training.objective not in LANGUAGE_MODELING:
        raise AdapterError(
            f"{field} needs the gradients of the objectives sft and text (got "
            f"training.objective: {recipe.training.objective}). Fix: use eva, which needs only "
            "activations"
        )
    if context.model is not None:
        layers_to_initialize(context.model, recipe.adapter, kind)


def require_float32_for_layer_copies(context: PreflightContext) -> None:
    """Refuse with AdapterError to train float32 copies of layers in a half-precision backbone."""
    spec, dtype = context.recipe.adapter, context.loaded_backbone.spec.dtype
    copies = spec.trains_weights or spec.method == "ln_tuning"
    if dtype != "float32" and (copies or spec.options.get("modules_to_save")):
        field = f"method: {spec.method}" if copies else "options.modules_to_save"
        raise AdapterError(
            f"adapter.{field}: trains copies of layers that are kept in float32, and PEFT does not "
            f"cast between them and the backbone (got backbone.dtype: {dtype}). Fix: set "
            "backbone.dtype: float32, or use adapter.method: lora"
        )


def require_teacher_vocabulary(context: PreflightContext) -> None:
    """Refuse with TrainingError a teacher with another vocabulary than the backbone."""
    spec = context.recipe.training.distillation
    if spec is not None:
        require_same_tokens(spec, context.loaded_backbone)


def refuse_unmatched_lr_multipliers(context: PreflightContext) -> None:
    """Refuse with TrainingError a learning rate multiplier that matches no trained parameter."""
    names = [name for name, p in context.adapted_model.named_parameters() if p.requires_grad]
    for module in context.recipe.training.lr_multipliers:
        if not any(belongs_to_module(name, module) for name in names):
            parts = sorted({part for name in names for part in name.split(".")[:-1]} - {"default"})
            known = [part for part in parts if not part.isdigit()]
            raise TrainingError(
                f"training.lr_multipliers.{module}: no trained parameter is in a module of that "
                f"name. Fix: use one of: {', '.join(known)}"
            )


def refuse_parameters_outside_ewc(context: PreflightContext) -> None:
    """Refuse with TrainingError trained parameters that `retention.ewc` does not penalise."""
    if context.recipe.retention.ewc is None:
        return
    updates = lora_updates(context.adapted_model).values()
    penalised = {id(factor) for update in updates for factor in (update.lora_a, update.lora_b)}
    for name, parameter in context.adapted_model.named_parameters():
        if parameter.requires_grad and id(parameter) not in penalised:
            raise TrainingError(
                f"retention.ewc: penalises only LoRA updates of linear layers, but {name} is "
                "trained too. Fix: leave it out of adapter.target_modules and adapter.options, or "
                "use retention.kl, which constrains the model's outputs"
            )


def require_clusters_for_early_stopping(context: PreflightContext) -> None:
    """Refuse with TrainingError texts of one cluster, whose losses have no spread to bound."""
    texts = context.texts.early_stopping
    if texts is None:
        return
    clusters = {example.cluster or example.origin for example in texts.examples}
    if len(clusters) < 2:
        raise TrainingError(
            f"retention.early_stopping.source: the bound of a rise needs texts of two clusters at "
            f"least (got {len(texts.examples)} texts of {len(clusters)} in {texts.source}). Fix: "
            "name texts that are independent, or raise retention.early_stopping.rows"
        )


def warn_of_few_corda_texts(context: PreflightContext) -> str | None:
    """Return a warning if the texts of `retention.corda` have fewer tokens than a layer has inputs.

    The covariance of the layer's inputs is singular then: directions that no text uses are alike.
    """
    texts = context.texts.corda
    if texts is None:
        return None
    tokens = sum(len(example.input_ids) for example in texts.examples)
    layers = lora_updates(context.adapted_model)
    widest = max(layers, key=lambda name: layers[name].lora_a.shape[1])
    inputs = layers[widest].lora_a.shape[1]
    if tokens >= inputs:
        return None
    return (
        f"retention.corda: the texts have {tokens} tokens, fewer than the {inputs} inputs of "
        f"{widest.removeprefix(PREFIX)}, so what the base knows is mostly not in them. Raise "
        "retention.corda.rows or length"
    )


def require_adalora_steps(context: PreflightContext) -> None:
    """Refuse with AdapterError a training too short for adalora to reduce ranks."""
    recipe = context.recipe
    if recipe.adapter.method == "adalora":
        pruning_phases(
            recipe.adapter.options, optimizer_steps(len(context.examples), recipe.training)
        )


def require_window_for_virtual_tokens(context: PreflightContext) -> None:
    """Refuse with AdapterError virtual tokens that do not fit before an example of full length."""
    recipe = context.recipe
    count, longest = recipe.adapter.virtual_tokens, recipe.data.max_length
    config = context.loaded_backbone.model.config.get_text_config()
    requested = (
        f"adapter.options.num_virtual_tokens: {count} and an example of data.max_length: {longest}"
    )
    window = getattr(config, "max_position_embeddings", None)
    if window and count + longest > window:
        raise AdapterError(
            f"{requested} exceed the {window} positions of this backbone. Fix: lower one of them"
        )
    sliding = getattr(config, "sliding_window", None)
    if sliding and count + longest > sliding:
        # Beyond the window, the number of virtual tokens that a token attends to depends on the
        # padding in between.
        raise AdapterError(
            f"{requested} exceed the sliding window of {sliding} tokens of this backbone's "
            "attention. Fix: lower one of them"
        )


def refuse_unsupported_on_encoder_decoder(context: PreflightContext) -> None:
    """Refuse with TrainingError settings that support decoder-only backbones alone."""
    recipe, launch = context.recipe, context.launch
    training, start = recipe.training, initialisation_of(recipe.adapter)
    replay = recipe.data.replay
    requested = {
        f"training.objective: {training.objective}": training.objective != "sft",
        f"adapter.method: {recipe.adapter.method}": recipe.adapter.trains_weights,
        f"adapter.options.{OPTION}: {start}": start in FROM_ROWS,
        "training.gradual_unfreezing_steps": training.gradual_unfreezing_steps is not None,
        "training.layerwise_lr_decay": training.layerwise_lr_decay is not None,
        "training.distillation": training.distillation is not None,
        "data.packing": recipe.data.packing,
        "data.replay.source: self": replay is not None and replay.source == SELF,
        "retention.self_distillation": recipe.retention.self_distillation is not None,
        "FSDP or DeepSpeed": launch.partitioned,
    }
    for setting, is_requested in requested.items():
        if is_requested:
            raise TrainingError(
                f"{setting} supports only decoder-only backbones (got the encoder-decoder "
                f"{context.loaded_backbone.files.reference}). Fix: remove this setting; an "
                "encoder-decoder supports the objective sft with LoRA and other methods that "
                "change layers"
            )


def warn_if_not_mergeable(context: PreflightContext) -> str | None:
    """Return a warning for a method whose adapters cannot be merged."""
    method = context.recipe.adapter.method
    reason = NOT_MERGED.get(method)
    if reason is None:
        return None
    return (
        f"adapter.method: {method} cannot be merged ({reason}): the adapter is trained and "
        "evaluated, but `lora-kit merge` and `release` will refuse it. Use lora to merge or release"
    )


def require_known_rewards(context: PreflightContext) -> None:
    """Refuse with RecipeError a reward that is neither a metric nor the run of a reward model."""
    spec = context.recipe.grpo
    assert spec is not None  # ensured by `PreflightCheck.applies`
    for name in spec.rewards:
        resolve_reward(name)


def require_installed_trackers(context: PreflightContext) -> None:
    """Refuse with TrainingError an experiment tracker that is not installed."""
    require_trackers(context.recipe.training)


def refuse_adapted_output_head(context: PreflightContext) -> None:
    """Refuse with AdapterError an adapter on the output head under objectives with a reference.

    TRL's losses bypass such an adapter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    recipe = context.recipe
    head = context.adapted_model.get_output_embeddings()
    if recipe.training.objective in REFERENCED and isinstance(head, BaseTunerLayer):
        raise AdapterError(
            f"adapter.target_modules: {recipe.adapter.method} on the output head (or the embedding "
            f"tied to it) is bypassed where TRL computes the log probabilities of "
            f"{recipe.training.objective}. Fix: leave out lm_head and the embedding, or use "
            "another method"
        )


# By objective, the costs that the estimate, made for sft, does not contain.
OMITTED_FROM_ESTIMATE = {
    "dpo": "the forward pass of the reference policy, about a quarter of a step",
    "kto": "two forward passes of the reference policy and one for the divergence, which about "
    "double a step's time",
    "orpo": "the logits of the prompt tokens, on which the cross-entropy is computed too: at least "
    "4 bytes of memory for each token of a forward pass and each entry of the vocabulary",
    "grpo": "sampling, reward models, and all but one of the answers of a prompt: a step takes at "
    "least `grpo.num_generations` times as long",
    "sdft": "sampling, the forward pass of the teacher, whose prompt holds the completion as well, "
    "and the logits of teacher and student over whole answers: at least 8 bytes of memory for "
    "each token of the answers of a forward pass and each entry of the vocabulary",
}


def warn_of_partial_estimate(context: PreflightContext) -> str | None:
    """Return a warning that names the costs missing in the estimate of memory and time."""
    training = context.recipe.training
    objective = training.objective
    if training.distillation:
        teacher = training.distillation.teacher.model
        return (
            f"training.distillation: the estimates of memory and time leave out the teacher, "
            f"{teacher}; leave room for its weights and a forward pass"
        )
    if objective not in OMITTED_FROM_ESTIMATE:
        return None
    return (
        f"training.objective: {objective}: the estimates of memory and time leave out "
        f"{OMITTED_FROM_ESTIMATE[objective]}; add them"
    )


def warn_of_substituted_estimate(context: PreflightContext) -> str | None:
    """Return a warning for a method whose memory is estimated as that of LoRA."""
    method = context.recipe.adapter.method
    if method not in NOT_SHAPED:
        return None
    return (
        f"adapter.method: {method} cannot be built without weights, so its memory is estimated as "
        "that of LoRA with rank 16; leave a margin"
    )
