"""Traps of weights and adapters: each tried out on a specimen, and whether it is caught."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from lora_kit.adapter.attach import wrapped
from lora_kit.backbone.load import guard_quantized_modules
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.preflight import checks
from lora_kit.preflight.experts import fused_experts
from lora_kit.preflight.traps.specimens import (
    four_bit_layer,
    situation,
    specimen_adapter,
    specimen_backbone,
    specimen_model,
)
from lora_kit.preflight.traps.trap import Trap, refused
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.sections import MergeSpec


def repacking_is_there() -> bool:
    """On CPUs with AVX512-BF16 bitsandbytes repacks weights in an evaluation."""
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16()) and repacking_ruins_weights()


def repacking_ruins_weights() -> bool:
    """A layer that is told that it is on such a CPU is another one after its first evaluation.

    It puts its weights in another order, on any CPU that it is told so on.
    """
    import bitsandbytes.functional as bnb

    layer = four_bit_layer()
    layer.support_avx512bf16_for_cpu = True
    before = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    with torch.no_grad():
        layer.eval()(torch.ones(2, 64))
    after = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    alike = torch.nn.functional.cosine_similarity(before.flatten(), after.flatten().float(), dim=0)
    return float(alike) < 0.9


def repacking_is_caught() -> bool:
    """A layer that would be repacked is not, once the backbone's guard has seen it."""
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


def cast_is_there() -> bool:
    """TRL casts the adapters of a quantized model."""
    from trl import SFTTrainer

    return "param.data.to(torch.bfloat16)" in inspect.getsource(SFTTrainer.__init__)


def cast_is_caught() -> bool:
    """An adapter in bfloat16 is refused."""
    model = specimen_adapter(specimen_model()).to(torch.bfloat16)
    return refused(checks.float32_masters, situation(model=model))


def merge_into_4bit_is_there() -> bool:
    """Of a small update most is rounded away when the sum is put into 4 bits again."""
    import bitsandbytes.functional as bnb

    layer = four_bit_layer()
    weight = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    update = 0.01 * weight.roll(1)
    again, state = bnb.quantize_4bit(weight + update, quant_type="nf4", compress_statistics=True)
    kept = bnb.dequantize_4bit(again, state) - weight
    return float((kept * update).sum() / update.square().sum()) < 0.5


def merge_into_4bit_is_caught() -> bool:
    """It cannot be asked for, and a merge that did nothing is told from one that did."""
    from lora_kit.merging.answers import Answers
    from lora_kit.merging.measured import Measured
    from lora_kit.merging.verify import compare

    adapted = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).log_softmax(dim=-1)
    base = torch.tensor([[0.0, 2.0], [0.0, 2.0]]).log_softmax(dim=-1)
    measured = Measured(Answers(adapted, torch.zeros(1, 1), {}), base, {})
    nothing = Answers(base, torch.zeros(1, 1), {})
    possible = MergeSpec.model_fields["base"].annotation
    return "4bit" not in str(possible) and not compare(measured, nothing).passed


def tied_heads_are_there() -> bool:
    """Head and embedding are one matrix in many models."""
    model = specimen_model()
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def tied_heads_are_caught() -> bool:
    """An adapter on either is refused."""
    return all(
        refused(checks.untied, situation(model=specimen_adapter(specimen_model(), [name])))
        for name in ("lm_head", "embed_tokens")
    )


def fused_experts_are_there() -> bool:
    """`all-linear` leaves parameters of three dimensions without an adapter."""
    return any(fused_experts(specimen_adapter(specimen_model(experts=True))))


def fused_experts_are_caught() -> bool:
    """A backbone made of them is refused under `all-linear`."""
    model = specimen_adapter(specimen_model(experts=True))
    return refused(checks.experts_covered, situation(model=model))


def quantized_checkpoints_are_caught() -> bool:
    """A backbone that counts as quantized, though it was not to be, is refused."""
    backbone = specimen_backbone()
    backbone.model.config.quantization_config = {"quant_method": "gguf"}
    return refused(checks.plain_where_said_plain, situation(backbone=backbone))


def missed_targets_are_there() -> bool:
    """PEFT takes a list of targets of which one matches nothing."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "v_porj"])
    return get_peft_model(specimen_model(), config) is not None


def missed_targets_are_caught() -> bool:
    """It is refused."""
    return refused(wrapped, specimen_model(), AdapterSpec(target_modules=["q_proj", "v_porj"]))


def left_off_is_there() -> bool:
    """An adapter that was switched off stays off."""
    model = specimen_adapter(specimen_model())
    on = _logits(model)
    model.base_model.disable_adapter_layers()
    return not torch.equal(on, _logits(model))


def left_off_is_caught() -> bool:
    """It is on again after an exception."""
    model = specimen_adapter(specimen_model())
    on = _logits(model)
    try:
        with adapter_disabled(model):
            raise KeyError
    except KeyError:
        return torch.equal(on, _logits(model))


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    """(1, 4, vocabulary) float32."""
    logits: torch.Tensor = model.eval()(torch.tensor([[1, 6, 7, 8]])).logits
    return logits


WEIGHT_TRAPS = (
    Trap(
        "repacked 4-bit weights",
        "On CPUs with AVX512-BF16 the first evaluation repacks 4-bit weights; gradients are wrong "
        "from then on, without an error.",
        "switched off on each 4-bit layer when the backbone is loaded",
        repacking_is_there,
        repacking_is_caught,
    ),
    Trap(
        "adapters cast to bfloat16",
        "TRL casts the adapters of a quantized model, in which small AdamW steps round to nothing.",
        "the trainer puts the float32 weights back; checked before step 1",
        cast_is_there,
        cast_is_caught,
    ),
    Trap(
        "merging into 4 bits",
        "Rounded to 4 bits again, a merged model keeps next to nothing of its adapter.",
        "`lora-kit merge` adds to dequantized or original weights and compares the result with "
        "what was measured",
        merge_into_4bit_is_there,
        merge_into_4bit_is_caught,
    ),
    Trap(
        "tied embeddings",
        "An adapter on one of two matrices that are one is lost when the model is loaded again.",
        "refused before step 1, and by `lora-kit merge`",
        tied_heads_are_there,
        tied_heads_are_caught,
    ),
    Trap(
        "fused experts",
        "`all-linear` does not find the experts of a mixture that are one tensor of three "
        "dimensions.",
        "coverage by class is shown by `lora-kit plan`; refused where they are a large share",
        fused_experts_are_there,
        fused_experts_are_caught,
    ),
    Trap(
        "quantized checkpoints",
        "A GGUF file loads as a quantized model, which cannot be saved or merged into.",
        "GGUF files are converted once, and other quantized checkpoints refused",
        None,
        quantized_checkpoints_are_caught,
    ),
    Trap(
        "misspelt targets",
        "PEFT is content if one of the named modules is there.",
        "each target that is named has to match; refused when the adapter is attached",
        missed_targets_are_there,
        missed_targets_are_caught,
    ),
    Trap(
        "an adapter left off",
        "Switched off for the base's turn, an adapter stays off after an error.",
        "every comparison switches it off in a block that switches it on again",
        left_off_is_there,
        left_off_is_caught,
    ),
)
