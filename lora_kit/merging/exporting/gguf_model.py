"""Writing a Llama-family model as a GGUF file, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from lora_kit.backbone.fingerprint import weight_files
from lora_kit.merging.exporting.formats import GgufType
from lora_kit.merging.exporting.vocabulary import Vocabulary
from lora_kit.runtime.errors import MergeError

# llama.cpp runs these two as one architecture, `llama`.
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
ROPE_TYPES = ("default", "llama3")
HEAD = "lm_head.weight"
FREQUENCIES = "rope_freqs.weight"


@dataclass(frozen=True)
class Shape:
    """What a configuration says of a Llama model. Numbers of layers, heads and dimensions."""

    layers: int
    heads: int
    key_heads: int
    head_dim: int
    rows: int
    tied: bool


def read_shape(directory: Path, config: Any) -> Shape:
    """The shape of a model that can be written.

    Args:
        directory: named in messages.
        config: of transformers.

    Raises:
        MergeError: if llama.cpp's `llama` architecture does not compute this model, or what is
            written could not be read back and compared.
    """
    architecture = (config.architectures or ["(none)"])[0]
    if architecture not in ARCHITECTURES:
        raise MergeError(
            f"{directory}: {architecture}: exported to GGUF are {', '.join(ARCHITECTURES)}"
        )
    rope = config.rope_parameters
    for field, value, possible in (
        ("rope_parameters.rope_type", rope.get("rope_type", "default"), ROPE_TYPES),
        ("rope_parameters.partial_rotary_factor", rope.get("partial_rotary_factor"), (None, 1.0)),
        ("hidden_act", config.hidden_act, ("silu",)),
        ("attention_bias", getattr(config, "attention_bias", False), (False,)),
        ("mlp_bias", getattr(config, "mlp_bias", False), (False,)),
        ("sliding_window", getattr(config, "sliding_window", None), (None,)),
        ("quantization_config", getattr(config, "quantization_config", None), (None,)),
    ):
        if value not in possible:
            raise MergeError(
                f"{directory}: config.json: {field}: {value!r} cannot be exported to GGUF; "
                f"possible: {', '.join(map(str, possible))}"
            )
    return Shape(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_dim=config.head_dim or config.hidden_size // config.num_attention_heads,
        rows=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
    )


@dataclass(frozen=True)
class Placed:
    """One tensor of the file.

    Attributes:
        source: file and key; `None` of one that is computed.
        shape: of the values, outermost first.
        type: as the file stores it; vectors are always `f32`, as llama.cpp wants them.
        heads: of a weight whose rows are reordered, else 0.
    """

    name: str
    source: tuple[Path, str] | None
    shape: tuple[int, ...]
    type: GgufType
    heads: int


def write_gguf(
    directory: Path, config: Any, vocabulary: Vocabulary, type_: GgufType, name: str, output: Path
) -> None:
    """Write `output`, holding one tensor at a time.

    Args:
        directory: of the model, in safetensors.
        config: of transformers.
        vocabulary: its tokenizer.
        type_: of the matrices.
        name: of the model, for who reads the file.
        output: the file.

    Raises:
        MergeError: if a tensor has no place in a GGUF file of this architecture, or no such value.
    """
    from gguf import GGUFWriter

    shape = read_shape(directory, config)
    try:
        placed = list(_placed(directory, shape, type_))
    except SafetensorError as error:
        raise MergeError(f"{directory}: cannot be read: {error}") from error
    writer = GGUFWriter(output, "llama")
    try:
        _add_origin(writer, name, directory / "README.md", placed)
        _add_shape(writer, config, shape)
        _add_type(writer, type_)
        _add_vocabulary(writer, vocabulary)
        if config.rope_parameters.get("rope_type") == "llama3":
            placed.append(Placed(FREQUENCIES, None, (shape.head_dim // 2,), "f32", 0))
        for one in placed:
            _add_info(writer, one)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for one in placed:
            writer.write_tensor_data(_stored(_values(one, config), one))
    finally:
        writer.close()


def _placed(directory: Path, shape: Shape, type_: GgufType) -> Iterator[Placed]:
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.LLAMA, shape.layers)
    written = set()
    for file in weight_files(directory):
        with safe_open(file, framework="pt") as stream:
            for key in stream.keys():  # noqa: SIM118 - a safetensors file is no mapping
                if key == HEAD and shape.tied:
                    # Without a head of its own, llama.cpp takes the embedding.
                    continue
                name = names.get_name(key, try_suffixes=(".weight",))
                if name is None:
                    raise MergeError(f"{file}: {key} has no place in a GGUF file of a Llama model")
                size = tuple(stream.get_slice(key).get_shape())
                written.add(name)
                yield Placed(name, (file, key), size, _type_of(size, type_), _reordered(key, shape))
    if not shape.tied and "output.weight" not in written:
        raise MergeError(f"{directory}: tie_word_embeddings is false, but there is no {HEAD}")


def _type_of(size: tuple[int, ...], type_: GgufType) -> GgufType:
    if len(size) < 2:
        return "f32"
    # A block of Q8_0 is 32 values of one row; llama.cpp falls back in the same way.
    return "f16" if type_ == "q8_0" and size[-1] % 32 else type_


def _reordered(key: str, shape: Shape) -> int:
    if key.endswith(".q_proj.weight"):
        return shape.heads
    return shape.key_heads if key.endswith(".k_proj.weight") else 0


def _values(placed: Placed, config: Any) -> np.ndarray:
    """The values of a tensor as float32, in the order of the file.

    transformers rotates the two halves of a head against each other, llama.cpp neighbours: the rows
    of queries and keys go from (half, pair) to (pair, half) in each head.
    """
    if placed.source is None:
        return _frequency_divisors(config)
    path, key = placed.source
    with safe_open(path, framework="pt") as stream:
        values: np.ndarray = stream.get_tensor(key).float().numpy()
    if not np.isfinite(values).all():
        raise MergeError(f"{path}: {key} holds values that are no numbers")
    if placed.heads:
        halves = values.reshape(placed.heads, 2, -1, values.shape[1])
        values = halves.swapaxes(1, 2).reshape(values.shape)
    return np.ascontiguousarray(values)


def _frequency_divisors(config: Any) -> np.ndarray:
    """By how much Llama 3.1 slows each rotation; (head_dim / 2,) float32."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    steps = torch.arange(0, 2 * len(scaled), 2).float() / (2 * len(scaled))
    plain = 1.0 / config.rope_parameters["rope_theta"] ** steps
    divisors: np.ndarray = (plain / scaled).numpy().astype(np.float32)
    return divisors


def _stored(values: np.ndarray, placed: Placed) -> np.ndarray:
    from gguf import GGMLQuantizationType, quantize

    if placed.type == "f16" and np.abs(values).max() > np.finfo(np.float16).max:
        key = placed.source[1] if placed.source else placed.name
        raise MergeError(f"{key}: has values above 65504, which f16 cannot hold; use --type bf16")
    stored: np.ndarray = quantize(values, GGMLQuantizationType[placed.type.upper()])
    return stored


def _add_info(writer: Any, placed: Placed) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quant_shape_to_byte_shape

    kind = GGMLQuantizationType[placed.type.upper()]
    values_a_block, bytes_a_block = GGML_QUANT_SIZES[kind]
    size = int(np.prod(placed.shape)) // values_a_block * bytes_a_block
    if placed.type in ("f32", "f16"):
        dtype = np.dtype(np.float32 if placed.type == "f32" else np.float16)
        writer.add_tensor_info(placed.name, placed.shape, dtype, size)
        return
    shape = quant_shape_to_byte_shape(placed.shape, kind)
    writer.add_tensor_info(placed.name, shape, np.dtype(np.uint8), size, raw_dtype=kind)


def _add_origin(writer: Any, name: str, card: Path, placed: Sequence[Placed]) -> None:
    from gguf import size_label

    parameters = sum(int(np.prod(one.shape)) for one in placed)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(size_label(parameters, 0, 0, 0))
    licence = _licence(card)
    if licence:
        writer.add_license(licence)


def _add_shape(writer: Any, config: Any, shape: Shape) -> None:
    writer.add_block_count(shape.layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_heads)
    if shape.head_dim * shape.heads != config.hidden_size:
        # Else llama.cpp divides.
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


def _licence(card: Path) -> str | None:
    """What a model card's header says; a merged model without a card says nothing."""
    if not card.is_file():
        return None
    from huggingface_hub import ModelCardData
    from huggingface_hub.repocard import RepoCard

    data = RepoCard.load(card, ignore_metadata_errors=True).data
    licence = data.license if isinstance(data, ModelCardData) else data.get("license")
    return licence if isinstance(licence, str) else None
