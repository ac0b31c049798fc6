"""Checks that run before step 1, one for each known trap of the underlying libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from lora_kit.adapter.peft_methods import METHODS_WITH_OWN_TARGETS
from lora_kit.backbone.encoder_decoder import is_encoder_decoder
from lora_kit.preflight.context import PreflightContext
from lora_kit.preflight.data_checks import (
    refuse_double_bos,
    refuse_packing_leak,
    require_supervised_end_of_turn,
    require_supervised_tokens,
)
from lora_kit.preflight.experts import unadapted_fused_experts
from lora_kit.preflight.launch_checks import (
    refuse_distributed_head,
    refuse_launch_fallback,
    refuse_partitioned_objective,
    refuse_retention_when_sharded,
    refuse_sharded_quantization,
    refuse_sharded_virtual_tokens,
    require_available_acceleration,
    require_equal_shares,
    require_full_gradients,
    require_weights_on_process_device,
)
from lora_kit.preflight.method_checks import (
    refuse_adapted_output_head,
    refuse_parameters_outside_ewc,
    refuse_unavailable_initialisation,
    refuse_unmatched_lr_multipliers,
    refuse_unsupported_on_encoder_decoder,
    require_adalora_steps,
    require_clusters_for_early_stopping,
    require_float32_for_layer_copies,
    require_installed_trackers,
    require_known_rewards,
    require_teacher_vocabulary,
    require_window_for_virtual_tokens,
    warn_if_not_mergeable,
    warn_of_few_corda_texts,
    warn_of_partial_estimate,
    warn_of_substituted_estimate,
)
from lora_kit.preflight.position_checks import (
    check_demonstrations,
    require_answer_positions,
    require_example_positions,
    require_teacher_positions,
    warn_of_long_examples,
)
from lora_kit.recipe.objective import HEADED, ON_POLICY
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import AdapterError, BackboneError, LoraKitError, TrainingError
from lora_kit.runtime.launch import Launch

# Largest share of the backbone's weights in fused experts without an adapter that `all-linear`
# tolerates.
MAX_UNADAPTED_SHARE = 0.1


@dataclass(frozen=True)
class PreflightCheck:
    """One check that runs before step 1.

    Attributes:
        name: short name, as listed by `lora-kit plan --json`.
        applies: returns true if the context has all parts that the check needs.
        run: raises a LoraKitError with the remedy, or returns a warning or `None`.
    """

    name: str
    applies: Callable[[PreflightContext], bool]
    run: Callable[[PreflightContext], str | None]


@dataclass(frozen=True)
class CheckResult:
    """Names of the checks that ran, and their warnings."""

    names: tuple[str, ...]
    warnings: tuple[str, ...]


def run_checks(context: PreflightContext) -> CheckResult:
    """Run every check that applies.

    Raises:
        LoraKitError: from the first check that fails.
    """
    applicable = [check for check in CHECKS if check.applies(context)]
    warnings = [check.run(context) for check in applicable]
    return CheckResult(
        names=tuple(check.name for check in applicable),
        warnings=tuple(warning for warning in warnings if warning),
    )


def launch_problems(recipe: Recipe, launch: Launch) -> Iterator[str]:
    """Yield every reason why a launch cannot train a recipe; needs no backbone."""
    context = PreflightContext(recipe, launch)
    for check in LAUNCH_CHECKS:
        if check.applies(context):
            try:
                check.run(context)
            except LoraKitError as error:
                yield str(error)


def refuse_repacked_weights(context: PreflightContext) -> None:
    """Refuse with BackboneError if bitsandbytes has repacked, or would repack, a 4-bit weight."""
    from bitsandbytes.nn import Linear4bit

    for name, module in context.loaded_backbone.model.named_modules():
        if not isinstance(module, Linear4bit):
            continue
        state = module.weight.quant_state
        if module.support_avx512bf16_for_cpu or getattr(state, "packing_format_for_cpu", False):
            raise BackboneError(
                f"backbone.quantization: {name} is repacked by bitsandbytes in the first "
                "evaluation, and gradients are wrong from then on. Fix: load the backbone with "
                "`lora_kit.backbone.load.load`, which prevents repacking"
            )


def refuse_quantized_checkpoint(context: PreflightContext) -> None:
    """Refuse with BackboneError a quantized checkpoint under `backbone.quantization: none`."""
    backbone = context.loaded_backbone
    config = getattr(backbone.model.config, "quantization_config", None)
    if backbone.spec.quantization == "none" and config is not None:
        raise BackboneError(
            f"backbone.model: the checkpoint {backbone.files.reference} is already quantized, so "
            "no adapter can be merged into it and it cannot be saved. Fix: give the .gguf file, "
            "which is converted, or the unquantized checkpoint"
        )


def require_float32_adapter(context: PreflightContext) -> None:
    """Refuse with TrainingError trainable parameters in a lower precision than float32."""
    for name, parameter in context.adapted_model.named_parameters():
        if parameter.requires_grad and parameter.dtype is not torch.float32:
            raise TrainingError(
                f"{name}: adapter parameters must be float32, because at learning rates below "
                f"1e-4 most AdamW steps round to zero in half precision (got {parameter.dtype}). "
                "Fix: attach the adapter with `lora_kit.adapter.attach.attach` and let no other "
                "trainer cast it"
            )


def refuse_trained_tied_embeddings(context: PreflightContext) -> None:
    """Refuse with AdapterError to train one of two tied embedding matrices."""
    model = context.adapted_model
    # PEFT's trainable tokens are applied to both tied matrices.
    trains_tokens = context.recipe.adapter.method == "trainable_tokens"
    if trains_tokens or not getattr(model.config, "tie_word_embeddings", False):
        return
    tied = (model.get_input_embeddings(), model.get_output_embeddings())
    for module in tied:
        if module is not None and any(p.requires_grad for p in module.parameters()):
            raise AdapterError(
                "adapter.target_modules: this backbone's lm_head and embedding are one matrix "
                "(tie_word_embeddings: true), so an adapter on either is lost when the model is "
                "loaded again. Fix: leave out lm_head and the embedding"
            )


def check_expert_coverage(context: PreflightContext) -> str | None:
    """Refuse with AdapterError, or warn, if fused experts without an adapter are a large share.

    Fused experts are parameters of three dimensions, which `nn.Linear` targeting does not find.
    """
    missed = sum(size for _, size in unadapted_fused_experts(context.adapted_model))
    trained, parameters = context.adapted_model.get_nb_trainable_parameters()
    frozen = parameters - trained
    if missed <= MAX_UNADAPTED_SHARE * frozen:
        return None
    problem = f"{missed / frozen:.0%} of the weights are fused experts, which get no adapter"
    spec = context.recipe.adapter
    if spec.virtual_tokens:
        return None  # virtual tokens adapt no weight
    if (
        spec.target_modules == "all-linear"
        and not spec.trains_weights
        and spec.method not in METHODS_WITH_OWN_TARGETS
    ):
        raise AdapterError(
            f"adapter.target_modules: {problem} and are not quantized (got all-linear). Fix: to "
            "train only the attention, name its modules, such as [q_proj, k_proj, v_proj, o_proj]"
        )
    return (
        f"adapter.target_modules: {problem}; only the named modules are trained. Choose a "
        "backbone without fused experts to adapt all of its weights"
    )


def _always(_context: PreflightContext) -> bool:
    return True


def _with_backbone(context: PreflightContext) -> bool:
    return context.backbone is not None


def _with_weights(context: PreflightContext) -> bool:
    return context.backbone is not None and context.backbone.has_weights


def _with_model(context: PreflightContext) -> bool:
    return context.model is not None


def _with_examples(context: PreflightContext) -> bool:
    return context.backbone is not None and bool(context.examples)


def _with_head(context: PreflightContext) -> bool:
    return context.recipe.training.objective in HEADED


def _with_rewards(context: PreflightContext) -> bool:
    return context.recipe.grpo is not None


def _on_policy(context: PreflightContext) -> bool:
    return context.recipe.training.objective in ON_POLICY


def _with_trackers(context: PreflightContext) -> bool:
    return bool(context.recipe.training.report_to)


def _with_turns(context: PreflightContext) -> bool:
    return _with_examples(context) and context.loaded_backbone.head is None


def _with_encoder_decoder(context: PreflightContext) -> bool:
    return _with_backbone(context) and is_encoder_decoder(context.loaded_backbone.model)


def _with_virtual_tokens(context: PreflightContext) -> bool:
    return context.recipe.adapter.virtual_tokens > 0


def _with_backbone_and_virtual_tokens(context: PreflightContext) -> bool:
    return _with_backbone(context) and _with_virtual_tokens(context)


def _with_packing(context: PreflightContext) -> bool:
    runs = _with_model(context) and _with_examples(context) and _with_weights(context)
    return runs and bool(context.packing)


# What a launch can do with a recipe, whatever the backbone.
LAUNCH_CHECKS = (
    PreflightCheck("sharding", _always, refuse_sharded_quantization),
    PreflightCheck("retention", _always, refuse_retention_when_sharded),
    PreflightCheck("initialisation", _always, refuse_unavailable_initialisation),
    PreflightCheck("full gradients", _always, require_full_gradients),
    PreflightCheck("virtual tokens", _with_virtual_tokens, refuse_sharded_virtual_tokens),
    PreflightCheck("partitioned objective", _always, refuse_partitioned_objective),
    PreflightCheck("equal shares", _on_policy, require_equal_shares),
    PreflightCheck("new head", _with_head, refuse_distributed_head),
)
CHECKS = (
    PreflightCheck("launch", _always, refuse_launch_fallback),
    PreflightCheck("acceleration", _always, require_available_acceleration),
    *LAUNCH_CHECKS,
    PreflightCheck("device", _with_weights, require_weights_on_process_device),
    PreflightCheck("repacking", _with_backbone, refuse_repacked_weights),
    PreflightCheck("quantized checkpoint", _with_backbone, refuse_quantized_checkpoint),
    PreflightCheck("float32 adapter", _with_model, require_float32_adapter),
    PreflightCheck("tied embeddings", _with_model, refuse_trained_tied_embeddings),
    PreflightCheck("experts", _with_model, check_expert_coverage),
    PreflightCheck("lr_multipliers", _with_model, refuse_unmatched_lr_multipliers),
    PreflightCheck("ewc", _with_model, refuse_parameters_outside_ewc),
    PreflightCheck("early stopping", _with_model, require_clusters_for_early_stopping),
    PreflightCheck("corda texts", _with_model, warn_of_few_corda_texts),
    PreflightCheck("adalora steps", _with_examples, require_adalora_steps),
    PreflightCheck("layer copies", _with_backbone, require_float32_for_layer_copies),
    PreflightCheck("window", _with_backbone_and_virtual_tokens, require_window_for_virtual_tokens),
    PreflightCheck("encoder-decoder", _with_encoder_decoder, refuse_unsupported_on_encoder_decoder),
    PreflightCheck("teacher vocabulary", _with_backbone, require_teacher_vocabulary),
    PreflightCheck("merging", _always, warn_if_not_mergeable),
    PreflightCheck("substituted estimate", _always, warn_of_substituted_estimate),
    PreflightCheck("output head", _with_model, refuse_adapted_output_head),
    PreflightCheck("rewards", _with_rewards, require_known_rewards),
    PreflightCheck("trackers", _with_trackers, require_installed_trackers),
    PreflightCheck("partial estimate", _always, warn_of_partial_estimate),
    PreflightCheck("supervised tokens", _with_examples, require_supervised_tokens),
    PreflightCheck("positions", _with_examples, require_example_positions),
    PreflightCheck("trained window", _with_examples, warn_of_long_examples),
    PreflightCheck("answer positions", _with_examples, require_answer_positions),
    PreflightCheck("demonstrations", _with_examples, check_demonstrations),
    PreflightCheck("teacher positions", _with_examples, require_teacher_positions),
    PreflightCheck("end of turn", _with_turns, require_supervised_end_of_turn),
    PreflightCheck("double BOS", _with_examples, refuse_double_bos),
    PreflightCheck("packing", _with_packing, refuse_packing_leak),
)
