"""What is checked before step 1: each trap of the libraries below that can be seen by then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lora_kit.adapter.peft_methods import OWN_TARGETS
from lora_kit.backbone.encoder_decoder import is_divided
from lora_kit.preflight.data_checks import (
    begins_once,
    learns_to_stop,
    packed_apart,
    something_to_learn,
)
from lora_kit.preflight.experts import fused_experts, weights_of
from lora_kit.preflight.method_checks import (
    begun_where_it_can_be,
    can_be_merged,
    computes_in_float32,
    consolidated_whole,
    encoded_whole,
    estimated_as_another_objective,
    estimated_as_it_is,
    in_one_process,
    kept_where_it_can_be,
    logged_where_it_can_be,
    long_enough_to_choose_ranks,
    rates_of_what_is_trained,
    rewarded_by_what_there_is,
    scored_by_the_base_head,
    stepped_by_us,
    taught_in_its_tokens,
    trained_with_its_head,
    whole_where_it_is_divided,
    within_the_window,
)
from lora_kit.preflight.position_checks import (
    room_for_answers,
    taught_what_it_can_read,
    within_its_positions,
)
from lora_kit.preflight.situation import Situation
from lora_kit.runtime.errors import AdapterError, BackboneError, TrainingError
from lora_kit.runtime.launch import (
    WEIGHTS_STAGE,
    require_what_was_asked,
    why_not_sharded,
)
from lora_kit.runtime.processes import process_state

# Share of the backbone's weights in fused experts from which on an adapter that reaches none of
# them is not what `all-linear` promises.
EXPERTS_SHARE = 0.1


@dataclass(frozen=True)
class Check:
    """One thing that has to be so.

    Attributes:
        name: as `lora-kit doctor` lists it.
        wrong: what goes wrong otherwise.
        applies: whether a situation has what is looked at.
        run: raises a LoraKitError with the remedy, or gives a warning, or `None`.
    """

    name: str
    wrong: str
    applies: Callable[[Situation], bool]
    run: Callable[[Situation], str | None]


@dataclass(frozen=True)
class Checked:
    """Which checks ran, and what they warn of."""

    names: tuple[str, ...]
    warnings: tuple[str, ...]


def run_checks(situation: Situation) -> Checked:
    """Run every check that applies.

    Raises:
        LoraKitError: of the first that fails.
    """
    applying = [check for check in CHECKS if check.applies(situation)]
    found = [check.run(situation) for check in applying]
    return Checked(
        names=tuple(check.name for check in applying),
        warnings=tuple(warning for warning in found if warning),
    )


def launched_as_asked(situation: Situation) -> None:
    """Raises TrainingError if accelerate fell back to something else."""
    require_what_was_asked(situation.launch)


def sharded_in_full_precision(situation: Situation) -> None:
    """Raises BackboneError if quantized weights would be sharded."""
    launch, quantization = situation.launch, situation.recipe.backbone.quantization
    if quantization == "none" or not launch.sharded:
        return
    how = "ZeRO-3" if launch.zero_stage == WEIGHTS_STAGE else "FSDP"
    why = why_not_sharded(launch, quantization)
    raise BackboneError(
        f"backbone.quantization: {quantization} under {how}: {why}. Set quantization: none, "
        "or launch without sharding (accelerate_configs/ddp.yaml: each GPU holds the quantized "
        "model)"
    )


def on_the_device_of_this_process(situation: Situation) -> None:
    """Raises BackboneError if weights lie on another process's device."""
    if situation.launch.sharded:
        return  # they wait in main memory
    backbone = situation.loaded
    wanted = process_state().device
    found = {parameter.device for parameter in backbone.model.parameters()}
    strange = sorted(str(device) for device in found if not _same_device(device, wanted))
    if strange:
        raise BackboneError(
            f"backbone.model: weights lie on {', '.join(strange)}, and this process computes on "
            f"{wanted}; load the backbone with `lora_kit.backbone.load`, which goes by local rank"
        )


def _same_device(one: torch.device, other: torch.device) -> bool:
    return one.type == other.type and (one.index or 0) == (other.index or 0)


def never_repacked(situation: Situation) -> None:
    """Raises BackboneError if bitsandbytes would repack, or has repacked, a 4-bit weight."""
    from bitsandbytes.nn import Linear4bit

    for name, module in situation.loaded.model.named_modules():
        if not isinstance(module, Linear4bit):
            continue
        state = module.weight.quant_state
        if module.support_avx512bf16_for_cpu or getattr(state, "packing_format_for_cpu", False):
            raise BackboneError(
                f"backbone.quantization: {name} is repacked by bitsandbytes in an evaluation, and "
                "gradients are wrong from then on; load the backbone with "
                "`lora_kit.backbone.load.load`, which prevents it"
            )


def plain_where_said_plain(situation: Situation) -> None:
    """Raises BackboneError if a backbone counts as quantized that was not to be."""
    backbone = situation.loaded
    config = getattr(backbone.model.config, "quantization_config", None)
    if backbone.spec.quantization == "none" and config is not None:
        raise BackboneError(
            f"backbone.model: {backbone.files.reference}: the checkpoint itself is quantized, so "
            "that it can be neither merged into nor saved. Give the .gguf file (which is "
            "converted) or the checkpoint that it was made from"
        )


def float32_masters(situation: Situation) -> None:
    """Raises TrainingError if what is trained is kept in less than float32."""
    for name, parameter in situation.attached.named_parameters():
        if parameter.requires_grad and parameter.dtype is not torch.float32:
            raise TrainingError(
                f"the adapter is kept in {parameter.dtype} ({name}): at learning rates below 1e-4 "
                "most AdamW steps would round to nothing. Attach it with "
                "`lora_kit.adapter.attach.attach`, and let no other trainer cast it"
            )


def untied(situation: Situation) -> None:
    """Raises AdapterError if one of two tied matrices is trained."""
    model = situation.attached
    # Trainable tokens are PEFT's own in both places.
    by_token = situation.recipe.adapter.method == "trainable_tokens"
    if by_token or not getattr(model.config, "tie_word_embeddings", False):
        return
    tied = (model.get_input_embeddings(), model.get_output_embeddings())
    for module in tied:
        if module is not None and any(p.requires_grad for p in module.parameters()):
            raise AdapterError(
                "adapter.target_modules: this backbone's output head and embedding are one matrix "
                "(tie_word_embeddings); trained apart they are lost when the model is loaded "
                "again. Leave lm_head and the embedding out"
            )


def experts_covered(situation: Situation) -> str | None:
    """Warns, or raises AdapterError, if a large share of the weights got no adapter unseen.

    Fused experts are parameters of three dimensions, which `nn.Linear` targeting does not find.
    """
    missed = sum(size for _, size in fused_experts(situation.attached))
    total = weights_of(situation.attached)
    if missed <= EXPERTS_SHARE * total:
        return None
    found = f"{missed / total:.0%} of the weights are fused experts, which get no adapter"
    spec = situation.recipe.adapter
    if spec.virtual_tokens:
        return None  # no weight gets one
    if (
        spec.target_modules == "all-linear"
        and not spec.trains_weights
        and spec.method not in OWN_TARGETS
    ):
        raise AdapterError(
            f"adapter.target_modules: all-linear: {found} and are not quantized. If the attention alone "
            "is what you want to train, name its modules, such as [q_proj, k_proj, v_proj, o_proj]"
        )
    return f"adapter.target_modules: {found}"


def _always(_situation: Situation) -> bool:
    return True


def _with_backbone(situation: Situation) -> bool:
    return situation.backbone is not None


def _with_model(situation: Situation) -> bool:
    return situation.model is not None


def _with_examples(situation: Situation) -> bool:
    return situation.backbone is not None and bool(situation.examples)


def _with_classes(situation: Situation) -> bool:
    return situation.recipe.training.objective == "classification"


def _with_rewards(situation: Situation) -> bool:
    return situation.recipe.grpo is not None


def _with_trackers(situation: Situation) -> bool:
    return bool(situation.recipe.training.report_to)


def _with_turns(situation: Situation) -> bool:
    return _with_examples(situation) and situation.loaded.head is None


def _with_two_stacks(situation: Situation) -> bool:
    return _with_backbone(situation) and is_divided(situation.loaded.model)


def _with_tokens(situation: Situation) -> bool:
    return situation.recipe.adapter.virtual_tokens > 0


def _with_backbone_and_tokens(situation: Situation) -> bool:
    return _with_backbone(situation) and _with_tokens(situation)


def _with_packing(situation: Situation) -> bool:
    return _with_model(situation) and _with_examples(situation) and situation.recipe.data.packing


CHECKS = (
    Check("launch", "accelerate runs something else than asked", _always, launched_as_asked),
    Check("sharding", "quantized weights are sharded", _always, sharded_in_full_precision),
    Check("device", "processes share a device", _with_backbone, on_the_device_of_this_process),
    Check("repacking", "evaluation breaks gradients", _with_backbone, never_repacked),
    Check("plain", "a checkpoint is quantized already", _with_backbone, plain_where_said_plain),
    Check("masters", "small steps round to nothing", _with_model, float32_masters),
    Check("tied", "trained heads are lost on reload", _with_model, untied),
    Check("experts", "fused experts get no adapter", _with_model, experts_covered),
    Check("keeping", "the base is not there whole", _always, kept_where_it_can_be),
    Check("initialisation", "whole weights are not there", _always, begun_where_it_can_be),
    Check("rates", "a rate is of nothing", _with_model, rates_of_what_is_trained),
    Check("consolidation", "a part is not held", _with_model, consolidated_whole),
    Check("steps", "gradients are gone before they are looked at", _always, stepped_by_us),
    Check("ranks", "there is no step to choose them", _with_examples, long_enough_to_choose_ranks),
    Check("copies", "whole layers meet another dtype", _with_backbone, computes_in_float32),
    Check("window", "tokens find no place", _with_backbone_and_tokens, within_the_window),
    Check("tokens", "they are encoded by a part", _with_tokens, encoded_whole),
    Check("two stacks", "a part is taken for all", _with_two_stacks, whole_where_it_is_divided),
    Check("teacher", "it has other tokens", _with_backbone, taught_in_its_tokens),
    Check("merging", "an adapter cannot be merged", _always, can_be_merged),
    Check("estimate", "another method's memory", _always, estimated_as_it_is),
    Check("processes", "an objective is made for one", _always, in_one_process),
    Check(
        "output head", "log probabilities pass by an adapter", _with_model, scored_by_the_base_head
    ),
    Check("rewards", "a reward is not there", _with_rewards, rewarded_by_what_there_is),
    Check("trackers", "a run is logged to nothing", _with_trackers, logged_where_it_can_be),
    Check("objective", "another one's estimate", _always, estimated_as_another_objective),
    Check("head", "a head is divided", _with_classes, trained_with_its_head),
    Check("labels", "nothing is learned at loss 0", _with_examples, something_to_learn),
    Check("positions", "an example finds no place", _with_examples, within_its_positions),
    Check("answers", "what is said finds no place", _with_examples, room_for_answers),
    Check("lessons", "the teacher has no place", _with_examples, taught_what_it_can_read),
    Check("end of turn", "the model never stops", _with_turns, learns_to_stop),
    Check("beginning", "texts begin twice", _with_examples, begins_once),
    Check("packing", "packed examples see one another", _with_packing, packed_apart),
)
