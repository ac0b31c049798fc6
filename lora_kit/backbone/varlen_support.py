"""Find out, without weights, if `varlen` can compute the attention of a model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.backbone.encoder_decoder import language_model_class
from lora_kit.backbone.open_files import build_model, refusing
from lora_kit.backbone.varlen import unsupported_arguments
from lora_kit.runtime.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Compute capability of NVIDIA's Ampere generation, the first with kernels of flash attention.
AMPERE = (8, 0)
# Capabilities with large shared memory, where heads above 192 have a backward pass.
LARGE_HEADS = ((8, 0), (9, 0), (10, 0), (10, 3))
LARGEST_HEAD, LARGEST_ANYWHERE, HEAD_MULTIPLE = 256, 192, 8
# Layers whose attention is a causal one, in a window or not; others have masks of their own.
KNOWN_LAYERS = {"full_attention", "sliding_attention", "attention"}
PROBE = "varlen_probe"
# By configuration, dtype and capability: a plan asks several times, and a trace takes a second.
_PROBLEMS: dict[tuple[str, torch.dtype, tuple[int, int] | None], str] = {}
TOKENS, STARTS = 5, (0, 3, 5)


def varlen_problem(
    config: PretrainedConfig, dtype: torch.dtype, capability: tuple[int, int] | None
) -> str:
    """Describe why `varlen` cannot compute a model; empty if it can.

    The model is built on the meta device, and each layer shows in a forward pass what it asks of
    its attention: a wrong answer of a layer that, say, ignores the lengths would raise no error.

    Args:
        config: configuration of the model.
        dtype: compute dtype.
        capability: compute capability of the GPU; `None` on a CPU, which has no kernel's limits.
    """
    key = (config.to_json_string(use_diff=False), dtype, capability)
    if key not in _PROBLEMS:
        _PROBLEMS[key] = _find_problem(config, dtype, capability)
    return _PROBLEMS[key]


def supports_flash_attention(config: PretrainedConfig) -> bool:
    """Return true if transformers computes a model with flash-attn, and its heads are not larger.

    Args:
        config: configuration of the model.
    """
    model = language_model_class(config)._model_mapping.get(type(config), None)
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return bool(getattr(model, "_supports_flash_attn", False)) and head <= LARGEST_HEAD


def _find_problem(
    config: PretrainedConfig, dtype: torch.dtype, capability: tuple[int, int] | None
) -> str:
    text = config.get_text_config()
    if config.is_encoder_decoder:
        return "encoder-decoder"
    if other := set(getattr(text, "layer_types", None) or ()) - KNOWN_LAYERS:
        return f"layers of kind {min(other)}"
    if capability is not None and capability < AMPERE:
        return f"needs a GPU of compute capability 8.0 or higher, got {capability}"
    if capability is not None and dtype is torch.float32:
        return "float32, for which flash attention has no kernel"
    try:
        model, calls = _trace(config, dtype)
    except BackboneError as error:
        return str(error).partition(". Fix:")[0]
    if not (model._supports_flash_attn and model._supports_attention_backend):
        return "does not support flash attention"
    # A convolution along the row reads the sequence before.
    if any(isinstance(module, torch.nn.Conv1d) for module in model.modules()):
        return "has convolutions"
    if len(calls) != text.num_hidden_layers:
        return f"{len(calls)} of {text.num_hidden_layers} layers have attention"
    return next(filter(None, (call.problem(capability) for call in calls)), "") or _lost_window(
        text, calls
    )


class _Call:
    """Arguments that one layer called its attention with."""

    def __init__(self, module: Any, sizes: tuple[int, int], mask: Any, arguments: dict[str, Any]):
        self.module = module
        self.sizes = sizes
        self.has_own_mask = mask is None or mask.shape != (1, 1, 1, 1)
        self.arguments = arguments

    def problem(self, capability: tuple[int, int] | None) -> str:
        """Describe what the kernel lacks; empty if nothing."""
        head, value = self.sizes
        if self.arguments.get("cu_seq_lens_q") is None:
            return "a layer does not hand the lengths to its attention"
        if self.has_own_mask:
            return "makes a mask of its own"
        if head != value:
            return f"keys and values of different sizes, {head} and {value}"
        if capability is not None and (head % HEAD_MULTIPLE or head > _largest_head(capability)):
            return f"heads of size {head}"
        return unsupported_arguments(self.module, self.arguments)


def _largest_head(capability: tuple[int, int]) -> int:
    return LARGEST_HEAD if capability in LARGE_HEADS else LARGEST_ANYWHERE


def _lost_window(text: Any, calls: list[_Call]) -> str:
    """Describe a window that a layer has in its mask only; empty if there is none."""
    windowed = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    usual = "sliding_attention" if windowed else "full_attention"
    kinds = getattr(text, "layer_types", None) or [usual] * len(calls)
    lost = any(
        kind == "sliding_attention" and not call.arguments.get("sliding_window")
        for kind, call in zip(kinds, calls, strict=True)
    )
    return "a sliding window that the attention is not told of" if lost else ""


def _trace(config: PretrainedConfig, dtype: torch.dtype) -> tuple[Any, list[_Call]]:
    """Return a model without weights, and the calls of its attention in a packed forward pass.

    Raises:
        BackboneError: if the model cannot be built or run so.
    """
    calls: list[_Call] = []

    def attend(
        module: Any, query: Any, key: Any, value: Any, mask: Any, **arguments: Any
    ) -> tuple[torch.Tensor, None]:
        calls.append(_Call(module, (key.shape[-1], value.shape[-1]), mask, arguments))
        rows, heads, tokens, _ = query.shape
        return query.new_empty(rows, tokens, heads, value.shape[-1]), None

    _register_probe(attend)
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # Dropout of attention acts in training mode only; random states stay as they are.
    with (
        refusing("cannot be tried", "set backbone.attention: sdpa"),
        torch.random.fork_rng(devices=[]),
        torch.device("meta"),
        torch.no_grad(),
    ):
        kind = language_model_class(config)
        model = build_model(kind, config, dtype=dtype, attn_implementation=PROBE).train()
        model(**dict(_inputs()), use_cache=False)
    return model, calls


def _register_probe(attend: Any) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(PROBE, attend)
    AttentionMaskInterface.register(PROBE, sdpa_mask)


def _inputs() -> Iterator[tuple[str, Any]]:
    """Yield inputs of two sequences in one row, as `lengths_arguments` makes them."""
    for name in ("input_ids", "position_ids"):
        yield name, torch.zeros(1, TOKENS, dtype=torch.int64)
    yield "attention_mask", torch.zeros(1, 1, 1, 1, dtype=torch.int32)
    for side in ("q", "k"):
        yield f"cu_seq_lens_{side}", torch.tensor(STARTS, dtype=torch.int32)
        yield f"max_length_{side}", max(STARTS[1], TOKENS - STARTS[1])
