"""Loading of a backbone: local files to a frozen, quantized and fingerprinted model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.backbone.attention import attention_arguments, choose_attention
from lora_kit.backbone.devices import device_arguments, require_on_gpus
from lora_kit.backbone.encoder_decoder import (
    is_encoder_decoder,
    language_model_class,
    prepare_seq2seq,
)
from lora_kit.backbone.files import BackboneFiles
from lora_kit.backbone.fingerprint import Fingerprint, fingerprint, weight_files
from lora_kit.backbone.heads import (
    HEAD_NAMES,
    Head,
    HeadOutputs,
    prepare_embedding,
    prepare_head,
)
from lora_kit.backbone.masked import masked_model_class, prepare_masked
from lora_kit.backbone.open_files import (
    open_config,
    open_model,
    open_tokenizer,
    require_all_blocks,
)
from lora_kit.backbone.tokenizer import prepare_tokenizer
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.objective import TEXT_HEADS
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import BackboneError
from lora_kit.runtime.launch import current_launch
from lora_kit.runtime.matrix_rate import computes_bfloat16_fast
from lora_kit.runtime.processes import process_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Quantizations in 4 bits, which FSDP 2 can shard.
FOUR_BIT = ("nf4", "fp4")
# Functions that prepare a model without a head on top of it.
PREPARE = {"embedding": prepare_embedding, "mlm": prepare_masked}


@dataclass(frozen=True)
class Backbone:
    """Loaded, frozen base model.

    Attributes:
        model: model on the devices of this process, in evaluation mode.
        tokenizer: tokenizer with a padding token.
        files: local files.
        spec: backbone section with revision, dtype and attention resolved.
        fingerprint: identity of weights, configuration, tokenizer and storage.
        quantized_modules: names of the quantized modules.
        head: head of a classifier or reward model; `None` for a language model.
        adapter_tokenizer: digest of a tokenizer that an adapter brought; `None` for the
            backbone's own.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    files: BackboneFiles
    spec: BackboneSpec
    fingerprint: Fingerprint
    quantized_modules: tuple[str, ...]
    head: Head | None = None
    adapter_tokenizer: str | None = None

    @property
    def has_weights(self) -> bool:
        """True unless the model has only shapes (`lora_kit.backbone.shapes.open_shapes`)."""
        return not next(self.model.parameters()).is_meta

    @property
    def packing_attention(self) -> str:
        """Attention that may separate packed examples; empty for an encoder-decoder."""
        return "" if is_encoder_decoder(self.model) else self.spec.attention


def compute_dtype(spec: BackboneSpec) -> torch.dtype:
    """Return the compute dtype: the one in the spec, or the best one of this machine for `auto`."""
    if spec.dtype != "auto":
        dtype: torch.dtype = getattr(torch, spec.dtype)
        return dtype
    if process_state().device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return torch.bfloat16 if computes_bfloat16_fast() else torch.float32


def load(
    files: BackboneFiles, spec: BackboneSpec, outputs: HeadOutputs | None = None, gpus: int = 1
) -> Backbone:
    """Load a model, frozen and quantized, on the devices of this process (`device_arguments`).

    Args:
        files: local files, as returned by `resolve`.
        spec: backbone section of the recipe.
        outputs: outputs of a head; `None` for a language model.
        gpus: number of GPUs over which the blocks may be spread, for evaluation and merging.

    Raises:
        BackboneError: if the model does not fit on the GPUs, the files are no such model in
            safetensors, or the requested attention implementation cannot be used.
    """
    weights = weight_files(files.directory)
    dtype = compute_dtype(spec)
    model, tokenizer, missing = _read(files, spec, dtype, outputs, gpus)
    if missing and outputs is None:
        # transformers would continue with random weights.
        raise BackboneError(
            f"backbone.model: {files.reference}: not the weights of a language model (missing: "
            f"{min(missing)} and {len(missing) - 1} others). Fix: choose a language model, or "
            "train an encoder with training.objective: classification, embedding or mlm"
        )
    prepare_tokenizer(tokenizer, model, files.reference, has_head=outputs is not None)
    if is_encoder_decoder(model):
        prepare_seq2seq(model, tokenizer, files.reference)
    head = None
    if outputs is not None:
        prepare = PREPARE.get(outputs.kind, prepare_head)
        head = prepare(model, tokenizer, outputs, missing)
    quantized = tuple(guard_quantized_modules(model))
    if spec.quantization != "none" and not quantized:
        raise BackboneError(
            f"backbone.quantization: {spec.quantization} applies only to linear layers, and "
            f"{files.reference} has none. Fix: set quantization: none"
        )
    model.requires_grad_(False)
    model.eval()
    resolved = {
        "revision": files.revision,
        "dtype": str(dtype).removeprefix("torch."),
        "attention": _resolved_attention(model, spec),
    }
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        files=files,
        spec=spec.model_copy(update=resolved),
        fingerprint=fingerprint(files.directory, weights, spec, dtype),
        quantized_modules=quantized,
        head=head,
    )


def _read(
    files: BackboneFiles,
    spec: BackboneSpec,
    dtype: torch.dtype,
    outputs: HeadOutputs | None,
    gpus: int,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, set[str]]:
    """Read model and tokenizer, and the names of parameters without weights in the files."""
    # Imports bitsandbytes, which takes seconds.
    from lora_kit.backbone.mapped_4bit import map_linear_layers, require_unquantized

    attention: dict[str, Any] = _attention(files, spec, dtype, outputs)
    has_new_layer = outputs is not None and outputs.kind not in PREPARE
    quantization = quantization_config(spec, dtype, has_new_layer)
    # Quantized and sharded layer by layer, when training starts.
    is_mapped = current_launch().fsdp and spec.quantization in FOUR_BIT
    if is_mapped:
        require_unquantized(open_config(files.directory), files.reference)
    setting = f" with backbone.attention: {spec.attention}" if attention else ""
    model, loading = open_model(
        _model_class(files, outputs),
        files.directory,
        f"backbone.model: {files.reference}{setting}: transformers cannot load it",
        "choose a model in safetensors of a supported type",
        dtype=dtype,
        quantization_config=None if is_mapped else quantization,
        output_loading_info=True,
        **device_arguments(gpus),
        **attention,
        **(outputs.configuration() if outputs else {}),
    )
    require_on_gpus(model, f"backbone.model: {files.reference}", gpus)
    require_all_blocks(model, loading["unexpected_keys"], files.directory)
    if is_mapped:
        map_linear_layers(model, quantization)
    return model, open_tokenizer(files.directory), loading["missing_keys"]


def _attention(
    files: BackboneFiles, spec: BackboneSpec, dtype: torch.dtype, outputs: HeadOutputs | None
) -> dict[str, str]:
    """Return the arguments that choose the attention; `auto` of a head is transformers' choice."""
    device = process_state().device
    if spec.attention == "auto" and (outputs or device.type == "cpu"):
        return {}
    chosen, problem = choose_attention(spec, open_config(files.directory), device, dtype)
    if problem:
        say(f"backbone.attention: masks are used; varlen cannot compute this model ({problem})")
    return attention_arguments(chosen, device)


def _model_class(files: BackboneFiles, outputs: HeadOutputs | None) -> Any:
    """Return the transformers auto class that loads the files.

    Raises:
        BackboneError: for an encoder-decoder with a head, which transformers feeds both stacks with
            the same text.
    """
    from transformers import (
        AutoModel,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    config = open_config(files.directory)
    if outputs is None:
        return language_model_class(config)
    if outputs.kind == "mlm":
        return masked_model_class(config, files.reference)
    if config.is_encoder_decoder:
        generating = ", or let this one generate the answer with training.objective: sft"
        raise BackboneError(
            f"backbone.model: {files.reference}: heads are not supported for encoder-decoders (got "
            f"{config.model_type}). Fix: choose a decoder or an encoder"
            f"{generating if outputs.kind in TEXT_HEADS else ''}"
        )
    if outputs.pooling is not None:
        return AutoModel
    reads_words = outputs.kind == "token-classification"
    return AutoModelForTokenClassification if reads_words else AutoModelForSequenceClassification


def _resolved_attention(model: PreTrainedModel, spec: BackboneSpec) -> str:
    """Return the attention implementation of a loaded model.

    Raises:
        BackboneError: if it differs from the requested one; for some models transformers replaces
            the kernel and only logs a line.
    """
    resolved = str(model.config._attn_implementation)
    if spec.attention not in ("auto", resolved):
        raise BackboneError(
            f"backbone.attention: {spec.attention}: for this model transformers uses {resolved} "
            "instead. Fix: leave backbone.attention out"
        )
    return resolved


def quantization_config(spec: BackboneSpec, dtype: torch.dtype, has_head: bool = False) -> Any:
    """Return the bitsandbytes configuration of a spec; `None` for `quantization: none`.

    4-bit weights use double quantization (Dettmers et al. 2023, arXiv:2305.14314, section 3).
    transformers 5.23 excludes the module of the last parameter by default, which is not the head
    of every classifier; heads are therefore excluded by name.

    Args:
        spec: backbone section of the recipe.
        dtype: compute dtype of 4-bit weights.
        has_head: true for a classifier or reward model, whose head is not quantized.
    """
    from transformers import BitsAndBytesConfig

    if spec.quantization == "none":
        return None
    skipped = list(HEAD_NAMES) if has_head else None
    if spec.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        llm_int8_skip_modules=skipped,
        load_in_4bit=True,
        bnb_4bit_quant_type=spec.quantization,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )


def guard_quantized_modules(model: torch.nn.Module) -> Iterator[str]:
    """Yield the names of all quantized modules, with bitsandbytes' CPU repacking disabled.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks a 4-bit weight in its first eval-mode
    forward and never restores it: later gradients are wrong (cosine 0.18 with the correct one) and
    dequantized weights are garbage, without an error. The attribute set here prevents repacking.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
            yield name
        elif isinstance(module, Linear8bitLt):
            yield name
