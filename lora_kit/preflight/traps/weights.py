"""Traps of weights and adapters."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lora_kit.adapter.attach import wrap_with_adapter
from lora_kit.backbone.load import guard_quantized_modules
from lora_kit.modeling.generation import generate_batch
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.preflight import checks
from lora_kit.preflight.experts import unadapted_fused_experts
from lora_kit.preflight.traps.specimens import (
    SIZES,
    four_bit_layer,
    specimen_adapter,
    specimen_backbone,
    specimen_context,
    specimen_model,
)
from lora_kit.preflight.traps.trap import Trap, is_refused
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.sections import MergeSpec


def repacking_is_present() -> bool:
    """Return true if bitsandbytes repacks weights in evaluations on this CPU (AVX512-BF16)."""
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16()) and repacking_ruins_weights()


def repacking_ruins_weights() -> bool:
    """Return true if a repacked layer has other weights after its first evaluation.

    Repacking reorders the weights. It is enabled by a flag of the layer, so the trap can be
    reproduced on any CPU.
    """
    import bitsandbytes.functional as bnb

    layer = four_bit_layer()
    layer.support_avx512bf16_for_cpu = True
    before = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    with torch.no_grad():
        layer.eval()(torch.ones(2, 64))
    after = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    cosine = torch.nn.functional.cosine_similarity(before.flatten(), after.flatten().float(), dim=0)
    return float(cosine) < 0.9


def repacking_is_guarded() -> bool:
    """Return true if `guard_quantized_modules` prevents repacking."""
    import bitsandbytes.functional as bnb

    layer = four_bit_layer()
    layer.support_avx512bf16_for_cpu = True
    list(guard_quantized_modules(torch.nn.Sequential(layer)))
    if layer.support_avx512bf16_for_cpu:
        return False
    before = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    with torch.no_grad():
        layer.eval()(torch.ones(2, 64))
    return torch.equal(before, bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state))


def cast_is_present() -> bool:
    """Return true if TRL casts the adapters of a quantized model to bfloat16."""
    from trl import SFTTrainer

    return "param.data.to(torch.bfloat16)" in inspect.getsource(SFTTrainer.__init__)


def cast_is_guarded() -> bool:
    """Return true if an adapter in bfloat16 is refused."""
    model = specimen_adapter(specimen_model()).to(torch.bfloat16)
    return is_refused(checks.require_float32_adapter, specimen_context(model=model))


def merge_into_4bit_is_present() -> bool:
    """Return true if requantizing to 4 bits rounds away most of a small update."""
    import bitsandbytes.functional as bnb

    layer = four_bit_layer()
    weight = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    update = 0.01 * weight.roll(1)
    again, state = bnb.quantize_4bit(weight + update, quant_type="nf4", compress_statistics=True)
    remaining = bnb.dequantize_4bit(again, state) - weight
    return float((remaining * update).sum() / update.square().sum()) < 0.5


def merge_into_4bit_is_guarded() -> bool:
    """Return true if 4-bit merging cannot be requested and an ineffective merge is detected."""
    from lora_kit.merging.predictions import ModelOutputs
    from lora_kit.merging.reference import ReferenceOutputs
    from lora_kit.merging.verify import compare_merged

    adapted = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).log_softmax(dim=-1)
    base = torch.tensor([[0.0, 2.0], [0.0, 2.0]]).log_softmax(dim=-1)
    measured = ReferenceOutputs(ModelOutputs(adapted, torch.zeros(1, 1), {}), base, {})
    unchanged = ModelOutputs(base, torch.zeros(1, 1), {})
    choices = MergeSpec.model_fields["base"].annotation
    return "4bit" not in str(choices) and not compare_merged(measured, unchanged).passed


def tied_heads_are_present() -> bool:
    """Return true if head and embedding are one matrix, as in many models."""
    model = specimen_model()
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def tied_heads_are_guarded() -> bool:
    """Return true if an adapter on the tied head or embedding is refused."""
    models = (specimen_adapter(specimen_model(), [name]) for name in ("lm_head", "embed_tokens"))
    return all(
        is_refused(checks.refuse_trained_tied_embeddings, specimen_context(model=model))
        for model in models
    )


def fused_experts_are_present() -> bool:
    """Return true if `all-linear` leaves fused experts without an adapter."""
    return any(unadapted_fused_experts(specimen_adapter(specimen_model(experts=True))))


def fused_experts_are_guarded() -> bool:
    """Return true if a backbone with fused experts is refused under `all-linear`."""
    model = specimen_adapter(specimen_model(experts=True))
    return is_refused(checks.check_expert_coverage, specimen_context(model=model))


def quantized_checkpoints_are_guarded() -> bool:
    """Return true if a quantized checkpoint under `quantization: none` is refused."""
    backbone = specimen_backbone()
    backbone.model.config.quantization_config = {"quant_method": "gguf"}
    return is_refused(checks.refuse_quantized_checkpoint, specimen_context(backbone=backbone))


def misspelt_targets_are_present() -> bool:
    """Return true if PEFT accepts a list of targets of which one matches nothing."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "v_porj"])
    return get_peft_model(specimen_model(), config) is not None


def misspelt_targets_are_guarded() -> bool:
    """Return true if a target that matches nothing is refused."""
    spec = AdapterSpec(target_modules=["q_proj", "v_porj"])
    return is_refused(wrap_with_adapter, specimen_model(), spec)


def disabled_adapter_is_present() -> bool:
    """Return true if a disabled adapter stays disabled."""
    model = specimen_adapter(specimen_model())
    on = _logits(model)
    model.base_model.disable_adapter_layers()
    return not torch.equal(on, _logits(model))


def disabled_adapter_is_guarded() -> bool:
    """Return true if `adapter_disabled` enables the adapter again after an exception."""
    model = specimen_adapter(specimen_model())
    on = _logits(model)
    try:
        with adapter_disabled(model):
            raise KeyError
    except KeyError:
        return torch.equal(on, _logits(model))


def head_copies_are_present() -> bool:
    """Return true if torch multiplies a slice of rows by one copy of the weight for each row."""
    states, weight = torch.ones(3, 4, 8), torch.ones(16, 8)
    with _Batched() as batched:
        torch.nn.functional.linear(states[:, -1:], weight)
    return (8, 16) in batched.sizes


@torch.no_grad()
def head_copies_are_guarded() -> bool:
    """Return true if generation multiplies the last positions of several rows in one product."""
    model = specimen_model().eval()
    head = (SIZES["hidden_size"], SIZES["vocab_size"])
    prompts = [[1, 6, 7, 8], [1, 5, 4, 6]]
    with _Batched() as batched:
        generate_batch(model, prompts, [], 0, 2)
        generate_batch(model, prompts[:1], [], 0, 2)
    return head not in batched.sizes


class _Batched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record the sizes of the matrices that batches are multiplied by."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.bmm.default:
            self.sizes.add(tuple(args[1].shape[1:]))
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    """Return the logits of a fixed text, (1, 4, vocabulary) float32."""
    logits: torch.Tensor = model.eval()(torch.tensor([[1, 6, 7, 8]])).logits
    return logits


WEIGHT_TRAPS = (
    Trap(
        "repacked 4-bit weights",
        "On CPUs with AVX512-BF16, the first evaluation repacks 4-bit weights; gradients are "
        "silently wrong from then on.",
        "repacking is disabled on each 4-bit layer when the backbone is loaded",
        repacking_is_present,
        repacking_is_guarded,
    ),
    Trap(
        "adapters cast to bfloat16",
        "TRL casts the adapters of a quantized model, so that small AdamW steps round to zero.",
        "the trainer restores the float32 weights; checked before step 1",
        cast_is_present,
        cast_is_guarded,
    ),
    Trap(
        "merging into 4 bits",
        "Rounding a merged model to 4 bits removes nearly all of the adapter's update.",
        "`lora-kit merge` adds to dequantized or original weights and compares the result with "
        "the evaluated adapter",
        merge_into_4bit_is_present,
        merge_into_4bit_is_guarded,
    ),
    Trap(
        "tied embeddings",
        "An adapter on one of two tied matrices is lost when the model is loaded again.",
        "refused before step 1, and by `lora-kit merge`",
        tied_heads_are_present,
        tied_heads_are_guarded,
    ),
    Trap(
        "fused experts",
        "`all-linear` does not find mixture experts that are fused into one tensor of three "
        "dimensions.",
        "`lora-kit plan` shows the coverage by class; refused if experts are a large share",
        fused_experts_are_present,
        fused_experts_are_guarded,
    ),
    Trap(
        "quantized checkpoints",
        "A GGUF file loads as a quantized model, which cannot be saved or merged into.",
        "GGUF files are converted once; other quantized checkpoints are refused",
        None,
        quantized_checkpoints_are_guarded,
    ),
    Trap(
        "misspelt targets",
        "PEFT accepts target_modules if only one of them exists.",
        "every target must match a module; refused when the adapter is attached",
        misspelt_targets_are_present,
        misspelt_targets_are_guarded,
    ),
    Trap(
        "adapter left disabled",
        "An adapter disabled to measure the base stays disabled after an error.",
        "comparisons disable the adapter only inside a context manager, which enables it again",
        disabled_adapter_is_present,
        disabled_adapter_is_guarded,
    ),
    Trap(
        "a copy of the head for each row",
        "torch multiplies the last positions of several prompts row by row, in bfloat16 each by "
        "its own copy of the head's weight: gigabytes for a vocabulary of 50,000.",
        "generation gives the head contiguous states",
        head_copies_are_present,
        head_copies_are_guarded,
    ),
)
