"""Attention over several sequences in one row, separated by their lengths instead of a mask.

On a GPU, sdpa with a mask has no flash kernel. Here torch's own (`torch.nn.attention.varlen`) is
registered with transformers under the name `varlen`, with its gradient. Passes without lengths
(generation, trees of choices, prefixes) take sdpa with its mask.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any, Literal

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from lora_kit.runtime.errors import BackboneError

# The kernel of torch 2.11 takes as many heads of keys as of queries only. Not asked for in a pass,
# which may be compiled.
HAS_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters
VARLEN: Literal["varlen"] = "varlen"
HALF = (torch.bfloat16, torch.float16)
# Arguments of a layer's attention that the kernel has no counterpart for, if they are set.
WITHOUT_KERNEL = ("softcap", "s_aux", "position_bias", "dropout")


def register_varlen() -> None:
    """Make `varlen` an attention implementation of transformers, in this process."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(VARLEN, varlen_attention)
    # A pass with lengths brings a placeholder instead, which transformers passes on as it is.
    AttentionMaskInterface.register(VARLEN, sdpa_mask)


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention within each sequence of a packed row.

    Args:
        module: layer of the attention.
        query: (1, heads, tokens, size).
        key: (1, key heads, tokens, size).
        value: (1, key heads, tokens, size).
        attention_mask: mask of a pass without lengths; not read otherwise.
        scaling: factor of the scores; by default 1 / sqrt(size).
        sliding_window: number of last tokens that a token attends to, itself included.
        cu_seq_lens_q: first token of each sequence, and the number of tokens, (sequences + 1,)
            int32; `None` for a pass with a mask.
        max_length_q: tokens of the longest sequence.
        kwargs: further arguments of transformers' attention.

    Returns:
        (1, tokens, heads, size), and no weights.

    Raises:
        BackboneError: if the layer needs an operation that the kernel lacks.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    if problem := unsupported_arguments(module, kwargs):
        raise BackboneError(
            f"backbone.attention: {VARLEN} cannot compute a layer of this model ({problem}). Fix: "
            "set backbone.attention: sdpa"
        )
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (one.to(dtype) for one in (query, key, value))
    # A window as long as every sequence is none, and plain causal attention is faster.
    window = sliding_window if sliding_window and sliding_window < max_length_q else None
    # The kernel has no float32, which weights in float32 without autocast give.
    attend = _by_kernel if query.is_cuda and query.dtype in HALF else _one_by_one
    query, key, value = (one[0].transpose(0, 1) for one in (query, key, value))
    attended = attend(query, key, value, cu_seq_lens_q, max_length_q, scaling, window)
    return attended[None], None


def unsupported_arguments(module: torch.nn.Module, arguments: dict[str, Any]) -> str:
    """Describe what a layer asks of its attention beyond causal attention in a window.

    Args:
        module: layer of the attention.
        arguments: keyword arguments of transformers' attention.

    Returns:
        Names and values, or an empty text.
    """
    asked = {name: arguments.get(name) for name in WITHOUT_KERNEL}
    found = [name for name, value in asked.items() if isinstance(value, torch.Tensor) or value]
    causal = arguments.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        found.append("not causal")
    return ", ".join(found)


def _by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Return the attention of packed sequences on a GPU, (tokens, heads, size)."""
    groups = query.shape[1] // key.shape[1]
    grouping: dict[str, Any] = {}
    if HAS_GROUPS:
        grouping["enable_gqa"] = groups > 1
    elif groups > 1:
        key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    attended = varlen_attn(
        query,
        key,
        value,
        starts,
        starts,
        longest,
        longest,
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
        **grouping,
    )
    assert isinstance(attended, torch.Tensor)  # a pair only if more was requested
    return attended


def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    _longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Return the attention of packed sequences, one after the other, on any device."""
    grouped = query.shape[1] != key.shape[1]
    parts = []
    for start, end in pairwise(starts.tolist()):
        q, k, v = (one[start:end].transpose(0, 1)[None] for one in (query, key, value))
        near = None
        if window:
            ones = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device)
            near = ones.tril().triu(1 - window)
        attended = scaled_dot_product_attention(
            q, k, v, attn_mask=near, is_causal=near is None, scale=scaling, enable_gqa=grouped
        )
        parts.append(attended[0].transpose(0, 1))
    return torch.cat(parts)
