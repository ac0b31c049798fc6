"""The backbone: local files -> loaded, frozen, quantized and fingerprinted model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from lora_kit.backbone import encoder_decoder
from lora_kit.backbone.attention import attention_arguments
from lora_kit.backbone.encoder_decoder import is_divided, language_model_class
from lora_kit.backbone.files import BackboneFiles
from lora_kit.backbone.fingerprint import Fingerprint, fingerprint, weight_files
from lora_kit.backbone.heads import HEAD_NAMES, REWARD, Head, head_of, labelled
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import BackboneError
from lora_kit.runtime.launch import current_launch
from lora_kit.runtime.processes import process_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Backbone:
    """A loaded, frozen base model.

    Attributes:
        head: of a classifier; `None` for a language model.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    files: BackboneFiles
    spec: BackboneSpec
    fingerprint: Fingerprint
    quantized_modules: tuple[str, ...]
    head: Head | None = None


def compute_dtype(spec: BackboneSpec) -> torch.dtype:
    """The dtype that `auto` stands for on this machine, or the one that is named.

    A CPU without bfloat16 instructions multiplies bfloat16 matrices several times slower than
    float32 ones (measured on one with AVX2 only: 19 against 130 GFLOP/s).
    """
    if spec.dtype != "auto":
        dtype: torch.dtype = getattr(torch, spec.dtype)
        return dtype
    if process_state().device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def load(files: BackboneFiles, spec: BackboneSpec, classes: Sequence[str] = ()) -> Backbone:
    """Load the model frozen, quantized as `spec` says, on this process's device.

    Where it is going to be divided over the processes it waits in main memory, from the same files
    for all processes of a machine: it may be larger than a GPU.

    Args:
        files: of `resolve`.
        spec: how it is loaded.
        classes: that a head chooses from, in the order of its outputs; without any, the model is a
            causal language model.

    Raises:
        BackboneError: if the files are no such model in safetensors, or attention cannot be
            computed as asked.
    """
    weights = weight_files(files.directory)
    dtype = compute_dtype(spec)
    model, tokenizer, missing = _read(files, spec, dtype, classes)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if is_divided(model):
        encoder_decoder.prepare(model, tokenizer, files.reference)
    if missing and not classes:
        # transformers would go on with random ones.
        raise BackboneError(
            f"backbone.model: {files.reference}: not the weights of a language model: "
            f"{min(missing)} and {len(missing) - 1} others are missing. An encoder can be a "
            "classifier: training.objective: classification"
        )
    head = head_of(model, tokenizer, classes, missing) if classes else None
    quantized = tuple(guard_quantized_modules(model))
    if spec.quantization != "none" and not quantized:
        raise BackboneError(
            f"backbone.quantization: {spec.quantization} reached no module of {files.reference}; "
            "its weights are not in linear layers. Use quantization: none"
        )
    model.requires_grad_(False)
    model.eval()
    resolved = {
        "revision": files.revision,
        "dtype": str(dtype).removeprefix("torch."),
        "attention": _attention_taken(model, spec),
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
    files: BackboneFiles, spec: BackboneSpec, dtype: torch.dtype, classes: Sequence[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, set[str]]:
    """Model and tokenizer as they are in the files, and the parameters that are not in them."""
    from transformers import AutoTokenizer

    device = process_state().device
    attention = attention_arguments(spec.attention, device)
    try:
        model, loading = _model_class(files, classes).from_pretrained(
            files.directory,
            dtype=dtype,
            quantization_config=quantization_config(spec, dtype, bool(classes)),
            # By local rank: "auto" would put every process of a node on the same devices.
            device_map={"": device}
            if device.type != "cpu" and not current_launch().sharded
            else None,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **attention,
            **labelled(classes),
        )
        tokenizer = AutoTokenizer.from_pretrained(files.directory, local_files_only=True)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        asked = f" with backbone.attention: {spec.attention}" if attention else ""
        # Behind the first line transformers lists all models that it knows.
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackboneError(f"backbone.model: {files.reference}{asked}: {said}") from error
    return model, tokenizer, loading["missing_keys"]


def _model_class(files: BackboneFiles, classes: Sequence[str]) -> Any:
    """The class of transformers that loads the files.

    Raises:
        BackboneError: for an encoder with a decoder and a head, which read different things.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(
        files.directory, local_files_only=True, trust_remote_code=False
    )
    if not classes:
        return language_model_class(config)
    if config.is_encoder_decoder:
        is_reward = tuple(classes) == REWARD
        instead = "; it learns to write the class as its answer with training.objective: sft"
        raise BackboneError(
            f"backbone.model: {files.reference}: {config.model_type} is an encoder with a decoder, "
            f"which takes no head here{'' if is_reward else instead}. Possible with a head: a "
            "decoder or an encoder"
        )
    return AutoModelForSequenceClassification


def _attention_taken(model: PreTrainedModel, spec: BackboneSpec) -> str:
    """How the model computes attention.

    Raises:
        BackboneError: if that is not what was asked for: of some models transformers puts another
            kernel in its place, with a line in a log.
    """
    taken = str(model.config._attn_implementation)
    if spec.attention not in ("auto", taken):
        raise BackboneError(
            f"backbone.attention: {spec.attention}: for this model transformers takes {taken} in "
            "its place; leave it out"
        )
    return taken


def quantization_config(spec: BackboneSpec, dtype: torch.dtype, has_head: bool = False) -> Any:
    """The bitsandbytes configuration of a spec, `None` for `quantization: none`.

    Of a classifier, transformers 5.23 would quantize the head: it leaves out the last parameter, of
    which BERT's is a bias.

    4-bit weights use double quantization (Dettmers et al. 2023, arXiv:2305.14314, section 3).
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
    """Yield the names of all quantized modules, made safe to train after an evaluation.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks a 4-bit weight in its first eval-mode
    forward and never unpacks it: later gradients are wrong (cosine 0.18 with the right one) and
    dequantized weights are garbage, without an error. The repacking asks this attribute.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
            yield name
        elif isinstance(module, Linear8bitLt):
            yield name
