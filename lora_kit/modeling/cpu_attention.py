"""Gradient of attention in bfloat16 on a CPU, by matrix products.

torch 2.13's backward kernel of sdpa is slow there: 18 of 22 ms for 4 rows of 136 tokens and 9 heads
of 64 on one core with bfloat16 instructions, where the products below take 7. They hold the scores
of one group of heads at a time, so that for long rows torch's own blocks are faster again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

NAME = "lora_kit_cpu"
# Tokens of a row up to which the products are faster; measured at 136, 256, 384 and 1,024.
LONGEST = 512
# Scores that are held in float32 at a time: 800 KB, of a core's cache of 1 MB.
SCORES = 200_000
# Added to the score of a hidden token. sdpa gives a token that sees nothing an output of zeros.
HIDDEN = -1e30
# Arguments of a layer's attention that the products do not have, if they are set.
UNSUPPORTED = ("softcap", "s_aux", "position_bias", "cache", "output_attentions")


@contextmanager
def products_in_backward(model: Any) -> Iterator[None]:
    """Compute the gradient of a model's sdpa attention by products until exit, if that is faster.

    The forward pass stays as it is, bit for bit; gradients are the same within rounding.
    """
    config = model.config.get_text_config()
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not on_cpu or config._attn_implementation != "sdpa":
        yield
        return
    _register()
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return attention as transformers' sdpa does, with a faster gradient in bfloat16.

    Args:
        module: layer of the attention.
        query: (rows, heads, tokens, size).
        key: (rows, key heads, tokens, size).
        value: (rows, key heads, tokens, size).
        attention_mask: (rows or 1, 1, tokens, tokens) bool, true where a token is seen; `None` for
            all tokens, or all before and the token itself if the attention is causal.
        dropout: probability of dropping a weight.
        scaling: factor of the scores; by default 1 / sqrt(size).
        is_causal: the layer's own setting by default.
        kwargs: further arguments of transformers' attention.

    Returns:
        (rows, tokens, heads, size), and no weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        attended, _ = sdpa_attention_forward(
            module, q, k, v, attention_mask, dropout, scaling, is_causal, **kwargs
        )
        return attended  # type: ignore[no-any-return]

    learning = torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value))
    if not learning or dropout or not _is_suitable(query, key, value, attention_mask, kwargs):
        return forward(query, key, value), None
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    bias = _bias(attention_mask, causal, query.shape[2])
    factor = scaling if scaling is not None else query.shape[-1] ** -0.5
    output: torch.Tensor = _ProductsInBackward.apply(  # type: ignore[no-untyped-call]
        query, key, value, bias, factor, forward
    )
    return output, None


def _is_suitable(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    arguments: dict[str, Any],
) -> bool:
    if query.dtype != torch.bfloat16 or key.dtype != query.dtype or value.dtype != query.dtype:
        return False
    tokens = query.shape[2]
    square = key.shape[2] == tokens and key.shape[3] == query.shape[3] == value.shape[3]
    shared = mask is None or (mask.dtype == torch.bool and mask.shape[1:] == (1, tokens, tokens))
    asked = any(arguments.get(name) is not None for name in UNSUPPORTED)
    return square and shared and not asked and 1 < tokens <= LONGEST


def _bias(mask: torch.Tensor | None, causal: bool, tokens: int) -> torch.Tensor | None:
    """Return what is added to the scores, (rows or 1, tokens, tokens) float32."""
    if mask is not None:
        return torch.zeros(mask[:, 0].shape).masked_fill_(~mask[:, 0], HIDDEN)
    return torch.full((1, tokens, tokens), HIDDEN).triu_(1) if causal else None


class _ProductsInBackward(torch.autograd.Function):
    """sdpa, with the gradient of softmax(scaling q k' + bias) v computed by products."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        scaling: float,
        attend: Any,
    ) -> torch.Tensor:
        """Return what `attend` returns for query, key and value."""
        ctx.save_for_backward(query, key, value, *([] if bias is None else [bias]))
        ctx.scaling = scaling
        output: torch.Tensor = attend(query, key, value)
        return output

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Take the gradient of the output, (rows, tokens, heads, size)."""
        query, key, value, *biases = ctx.saved_tensors
        rows, heads, tokens, size = query.shape
        groups = key.shape[1]
        # The queries of a group share its keys: one matrix a group, without repeated keys.
        grouped = (rows, groups, heads // groups * tokens, size)
        of_output = upstream[0]
        if biases and not (seeing := (biases[0] == 0).any(-1)).all():
            of_output = of_output * seeing[..., None, None]
        q, g = query.reshape(grouped), of_output.transpose(1, 2).reshape(grouped)
        k, v = key.contiguous(), value.contiguous()
        of_q, of_k, of_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        at_once = max(SCORES // (grouped[2] * tokens), 1)
        for row in range(rows):
            bias = biases[0][row % len(biases[0])] if biases else None
            for start in range(0, groups, at_once):
                part = (row, slice(start, start + at_once))
                weights = _weights(q[part], k[part], bias, ctx.scaling)
                slopes = torch.bmm(g[part], v[part].transpose(1, 2)).float()
                torch.bmm(weights.to(q.dtype).transpose(1, 2), g[part], out=of_v[part])
                # The gradient of softmax: weights * (slopes - sum(weights * slopes)).
                slopes.sub_((weights * slopes).sum(-1, keepdim=True)).mul_(weights)
                of_scores = slopes.mul_(ctx.scaling).to(q.dtype)
                torch.bmm(of_scores, k[part], out=of_q[part])
                torch.bmm(of_scores.transpose(1, 2), q[part], out=of_k[part])
        return of_q.view(query.shape), of_k, of_v, None, None, None


def _weights(
    query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Return softmax(scaling q k' + bias), (groups, queries, tokens) float32."""
    scores = torch.bmm(query, key.transpose(1, 2)).float().mul_(scaling)
    if bias is not None:
        scores.view(-1, *bias.shape).add_(bias)
    return scores.softmax(dim=-1)
