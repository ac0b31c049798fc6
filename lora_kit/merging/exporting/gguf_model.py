"""Write a Llama-family model as a GGUF file, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lora_kit.backbone.card import card_license
from lora_kit.backbone.fingerprint import weight_files
from lora_kit.merging.exporting.formats import GgufType
from lora_kit.merging.exporting.model_shape import ModelShape
from lora_kit.merging.exporting.vocabulary import Vocabulary
from lora_kit.merging.tensors import StoredTensor, stored_by_key
from lora_kit.runtime.errors import MergeError

HEAD = "lm_head.weight"
FREQUENCIES = "rope_freqs.weight"


@dataclass(frozen=True)
class GgufTensor:
    """Tensor of a GGUF file.

    Attributes:
        name: name in the file.
        source: tensor of the model; `None` for a computed tensor.
        shape: shape of the values, outermost dimension first.
        type: type in the file; vectors are always `f32`, as llama.cpp requires.
        heads: number of heads of a weight whose rows are reordered, else 0.
    """

    name: str
    source: StoredTensor | None
    shape: tuple[int, ...]
    type: GgufType
    heads: int


def write_gguf(
    directory: Path,
    config: Any,
    shape: ModelShape,
    vocabulary: Vocabulary,
    type_: GgufType,
    name: str,
    output: Path,
) -> None:
    """Write a GGUF file with one tensor in memory at a time.

    Args:
        directory: directory of the model, in safetensors.
        config: configuration of transformers.
        shape: dimensions of the model.
        vocabulary: tokenizer of the model.
        type_: type of the matrices.
        name: name of the model in the file's metadata.
        output: file to write.

    Raises:
        MergeError: if a weight file cannot be read, or a tensor has no place in a GGUF file of this
            architecture or values that its type cannot hold.
    """
    from gguf import GGUFWriter

    tensors = list(_tensors(directory, shape, type_))
    writer = GGUFWriter(output, "llama")
    try:
        _add_origin(writer, name, directory, tensors)
        _add_shape(writer, config, shape)
        _add_type(writer, type_)
        _add_vocabulary(writer, vocabulary)
        if config.rope_parameters.get("rope_type") == "llama3":
            tensors.append(GgufTensor(FREQUENCIES, None, (shape.head_dim // 2,), "f32", 0))
        for tensor in tensors:
            _add_info(writer, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(_quantize(_values(tensor, config), tensor))
    finally:
        writer.close()


def _tensors(directory: Path, shape: ModelShape, type_: GgufType) -> Iterator[GgufTensor]:
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.LLAMA, shape.layers)
    written = set()
    for key, stored in sorted(stored_by_key(weight_files(directory)).items()):
        if key == HEAD and shape.tied:
            # llama.cpp uses the embedding where the file has no head.
            continue
        name = names.get_name(key, try_suffixes=(".weight",))
        if name is None:
            raise MergeError(
                f"{stored.path}: tensor has no place in a GGUF file of a Llama model (got {key}). "
                "Fix: export the merged model, without other tensors"
            )
        written.add(name)
        size = stored.shape
        yield GgufTensor(name, stored, size, _type_of(size, type_), _reordered(key, shape))
    if not shape.tied and "output.weight" not in written:
        raise MergeError(
            f"{directory}: config.json: tie_word_embeddings: untied, but the head is missing (got "
            f"false and no {HEAD}). Fix: set it to true, or restore the missing weight file"
        )


def _type_of(size: tuple[int, ...], type_: GgufType) -> GgufType:
    if len(size) < 2:
        return "f32"
    # A block of Q8_0 is 32 values of one row; llama.cpp falls back to f16 in the same way.
    return "f16" if type_ == "q8_0" and size[-1] % 32 else type_


def _reordered(key: str, shape: ModelShape) -> int:
    if key.endswith(".q_proj.weight"):
        return shape.heads
    return shape.key_heads if key.endswith(".k_proj.weight") else 0


def _values(tensor: GgufTensor, config: Any) -> np.ndarray:
    """Return the values of a tensor in the order of the GGUF file: `tensor.shape`, float32.

    RoPE in transformers rotates the two halves of a head against each other, in llama.cpp
    neighbouring rows: query and key rows go from (half, pair) to (pair, half) in each head.
    """
    if tensor.source is None:
        return _frequency_divisors(config)
    values: np.ndarray = tensor.source.read().float().numpy()
    if not np.isfinite(values).all():
        raise MergeError(
            f"{tensor.source.path}: {tensor.source.key} has values that are infinite or NaN (got "
            f"dtype {values.dtype}). Fix: merge again"
        )
    if tensor.heads:
        halves = values.reshape(tensor.heads, 2, -1, values.shape[1])
        values = halves.swapaxes(1, 2).reshape(values.shape)
    return np.ascontiguousarray(values)


def _frequency_divisors(config: Any) -> np.ndarray:
    """Return the factors by which Llama 3.1 slows each rotation, (head_dim / 2,) float32."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    steps = torch.arange(0, 2 * len(scaled), 2).float() / (2 * len(scaled))
    plain = 1.0 / config.rope_parameters["rope_theta"] ** steps
    divisors: np.ndarray = (plain / scaled).numpy().astype(np.float32)
    return divisors


def _quantize(values: np.ndarray, tensor: GgufTensor) -> np.ndarray:
    from gguf import GGMLQuantizationType, quantize

    if tensor.type == "f16" and np.abs(values).max() > np.finfo(np.float16).max:
        key = tensor.source.key if tensor.source else tensor.name
        raise MergeError(
            f"{key}: f16 holds no values above 65504 (got {np.abs(values).max():.3g}). Fix: use "
            "--type bf16"
        )
    quantized: np.ndarray = quantize(values, GGMLQuantizationType[tensor.type.upper()])
    return quantized


def _add_info(writer: Any, tensor: GgufTensor) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quant_shape_to_byte_shape

    kind = GGMLQuantizationType[tensor.type.upper()]
    block_values, block_bytes = GGML_QUANT_SIZES[kind]
    size = int(np.prod(tensor.shape)) // block_values * block_bytes
    if tensor.type in ("f32", "f16"):
        dtype = np.dtype(np.float32 if tensor.type == "f32" else np.float16)
        writer.add_tensor_info(tensor.name, tensor.shape, dtype, size)
        return
    shape = quant_shape_to_byte_shape(tensor.shape, kind)
    writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), size, raw_dtype=kind)


def _add_origin(writer: Any, name: str, directory: Path, tensors: Sequence[GgufTensor]) -> None:
    from gguf import size_label

    parameters = sum(int(np.prod(tensor.shape)) for tensor in tensors)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(size_label(parameters, 0, 0, 0))
    if licence := card_license(directory):
        writer.add_license(licence)


def _add_shape(writer: Any, config: Any, shape: ModelShape) -> None:
    writer.add_block_count(shape.layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_heads)
    if shape.head_dim * shape.heads != config.hidden_size:
        # By default llama.cpp divides the hidden size by the heads.
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(shape.rows)


def _add_type(writer: Any, type_: GgufType) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    kind = "ALL_F32" if type_ == "f32" else f"MOSTLY_{type_.upper()}"
    writer.add_file_type(LlamaFileType[kind])
    writer.add_quantization_version(GGML_QUANT_VERSION)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    for name, index in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    writer.add_add_space_prefix(False)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
