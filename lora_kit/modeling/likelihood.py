"""Log-likelihood of the supervised tokens of a batch.

Training, evaluation and merging share these definitions of logits at positions and of the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from lora_kit.backbone.attention import lengths_arguments
from lora_kit.backbone.encoder_decoder import Seq2SeqBatch, is_encoder_decoder
from lora_kit.modeling.model_inputs import send, supervised_positions


def supervised_nll(
    model: Any, batch: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the negative log-likelihood of each supervised token, in nats.

    Args:
        model: a language model.
        batch: result of `pad_examples` or `pack_examples`, on the model's device.

    Returns:
        `nll` (supervised,) float32 and `rows` (supervised,) int64, the row of each token, or its
        example in a pack; in the order of rows and positions.
    """
    targets, rows, columns = supervised_positions(batch)
    logits = logits_at(model, batch, rows, columns)
    if "lengths" in batch:
        ends = torch.tensor([*accumulate(batch["lengths"])])
        rows = torch.bucketize(columns, send(ends, columns.device), right=True)
    return token_nll(logits, targets), rows


def supervised_tokens(
    model: Any, batch: Mapping[str, torch.Tensor], cache: Any = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return `supervised_nll`, and for each supervised token if it was the most likely one.

    Args:
        model: a language model.
        batch: result of `pad_examples`, on the model's device.
        cache: keys and values of the tokens before every row; the attention mask covers them.

    Returns:
        `nll` (supervised,) float32, `greedy` (supervised,) bool and `rows` (supervised,) int64.
    """
    targets, rows, columns = supervised_positions(batch)
    logits = logits_at(model, batch, rows, columns, cache=cache)
    return token_nll(logits, targets), logits.detach().argmax(dim=-1) == targets, rows


def supervised_logits(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits from which each supervised token is predicted.

    Args:
        model: a language model.
        batch: as `supervised_nll` takes it.

    Returns:
        (supervised, vocabulary) in the model's dtype, in the order of rows and positions.
    """
    _, rows, columns = supervised_positions(batch)
    return logits_at(model, batch, rows, columns)


def logits_at(
    model: Any,
    batch: Mapping[str, torch.Tensor],
    rows: torch.Tensor,
    columns: torch.Tensor,
    head: torch.nn.Module | None = None,
    cache: Any = None,
) -> torch.Tensor:
    """Return next-token logits at some positions of a batch; the others are not computed.

    Args:
        model: a language model, or a decoder's forward.
        batch: `input_ids`, and where the model needs them `attention_mask` and `position_ids`.
        rows: (positions,) int64.
        columns: (positions,) int64.
        head: the model's output head; looked up in the model by default, if it is not wrapped.
        cache: keys and values of the tokens before every row.

    Returns:
        (positions, vocabulary) in the model's dtype.
    """
    inputs: dict[str, Any] = {
        name: batch.get(name) for name in ("input_ids", "attention_mask", "position_ids")
    }
    if is_encoder_decoder(model):
        seq2seq = Seq2SeqBatch.of(model, batch["input_ids"], batch["attention_mask"])
        inputs, columns = seq2seq.inputs, columns - seq2seq.starts[rows]
    elif cache is not None:
        inputs["past_key_values"] = cache
    else:
        inputs |= lengths_arguments(model, batch)
    with head_at(head or model.get_output_embeddings(), rows, columns):
        logits: torch.Tensor = model(**inputs, use_cache=cache is not None).logits
    if logits.shape[:2] != (1, len(rows)):
        # A model that does not call its output head as a module.
        return logits[rows, columns]
    return logits[0]


@contextmanager
def head_at(head: torch.nn.Module, rows: torch.Tensor, columns: torch.Tensor) -> Iterator[None]:
    """Let the output head see some positions of the batch only: (1, positions, hidden).

    The head is a fifth of a 135M model's work, and most positions of a prompt are never scored.
    Elementwise operations that a model applies to its logits afterwards apply to these too.

    Args:
        head: the module that turns hidden states into logits.
        rows: (positions,) int64.
        columns: (positions,) int64.
    """

    def select(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        # The head may be on another GPU than the inputs.
        at = inputs[0].device
        return (inputs[0][rows.to(at), columns.to(at)][None], *inputs[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def token_nll(
    logits: torch.Tensor, targets: torch.Tensor, chunk: int | None = None
) -> torch.Tensor:
    """Return the negative log-likelihood of each target, in nats.

    Args:
        logits: (tokens, vocabulary).
        targets: (tokens,) int64.
        chunk: tokens converted to float32 at a time; by default `chunk_tokens` of the device.

    Returns:
        (tokens,) float32; it can be differentiated once.
    """
    chunk = chunk or chunk_tokens(logits.device.type)
    nll: torch.Tensor = _ChunkedNll.apply(logits, targets, chunk)  # type: ignore[no-untyped-call]
    return nll


def token_kl(
    target: torch.Tensor,
    logits: torch.Tensor,
    temperature: float = 1.0,
    excluded: torch.Tensor | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """Return KL(target || predicted) of each token's distributions, in nats.

    Args:
        target: (tokens, vocabulary), logits of the distribution to learn, without a gradient.
        logits: (tokens, vocabulary), logits of the predicted distribution.
        temperature: divisor of all logits.
        excluded: (tokens,) int64, the word of each token that both distributions leave out; the
            others are renormalized, and the gradient of the word's logit is 0.
        chunk: tokens converted to float32 at a time; by default `chunk_tokens` of the device.

    Returns:
        (tokens,) float32; it can be differentiated once.
    """
    chunk = chunk or chunk_tokens(logits.device.type)
    kl: torch.Tensor = _ChunkedKl.apply(  # type: ignore[no-untyped-call]
        logits, target, temperature, excluded, chunk
    )
    return kl


# Tokens whose logits are held in float32 at a time. On a CPU 64 of 150,000 words, 39 MB, stay near
# its cache; on a GPU each chunk is a dozen kernels, and 64 tokens would not fill it.
CPU_CHUNK, GPU_CHUNK = 64, 1024


def chunk_tokens(device_type: str) -> int:
    """Return the number of tokens whose logits are held in float32 at a time."""
    return CPU_CHUNK if device_type == "cpu" else GPU_CHUNK


class _ChunkedNll(torch.autograd.Function):
    """-log softmax(logits)[target] in float32, without a float32 copy of all the logits.

    The gradient, softmax(logits) - onehot(target), is computed in the forward pass, chunk by chunk
    and in the logits' dtype: two copies of the logits where autograd keeps up to four.
    `torch.nn.functional.linear_cross_entropy` of torch 2.13 would hold none, but multiplies by the
    head's weight alone: an adapter on the head, and what a model does to its logits afterwards
    (softcapping, scaling), would be left out.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, chunk: int) -> torch.Tensor:
        """Take logits (tokens, vocabulary) and targets (tokens,); return (tokens,) float32."""
        ctx.gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        nll = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
        for start in range(0, len(targets), chunk):
            part, target = logits[start : start + chunk].float(), targets[start : start + chunk]
            nll[start : start + chunk] = cross_entropy(part, target, reduction="none")
            if ctx.gradient is not None:
                slope = (part - part.logsumexp(dim=-1, keepdim=True)).exp_()
                slope[torch.arange(len(target), device=slope.device), target] -= 1
                ctx.gradient[start : start + chunk] = slope
                del slope
            del part  # not held while the next chunk is converted
        return nll

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of the logits."""
        return _scaled_gradient(ctx, upstream[0]), None, None


class _ChunkedKl(torch.autograd.Function):
    """KL(target || softmax(logits)) in float32, with the memory of `_ChunkedNll`.

    The gradient is (softmax(logits) - target) / temperature.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        target: torch.Tensor,
        temperature: float,
        excluded: torch.Tensor | None,
        chunk: int,
    ) -> torch.Tensor:
        """Take the arguments of `token_kl`; return (tokens,) float32."""
        ctx.gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        kl = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        for start in range(0, len(logits), chunk):
            span = slice(start, start + chunk)
            predicted, wanted = (one[span].float() / temperature for one in (logits, target))
            if excluded is not None:
                left_out = (torch.arange(len(wanted), device=wanted.device), excluded[span])
                predicted[left_out] = wanted[left_out] = -torch.inf
            predicted, wanted = predicted.log_softmax(dim=-1), wanted.log_softmax(dim=-1)
            probabilities, ratio = wanted.exp(), wanted.sub_(predicted)
            if excluded is not None:
                ratio[left_out] = 0.0  # 0 log(0 / 0) of the word that is left out
            kl[span] = ratio.mul_(probabilities).sum(dim=-1)
            if ctx.gradient is not None:
                ctx.gradient[span] = predicted.exp_().sub_(probabilities).div_(temperature)
            del predicted, wanted, probabilities, ratio  # as in `_ChunkedNll`
        return kl

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        """Return the gradient of the logits."""
        return _scaled_gradient(ctx, upstream[0]), None, None, None, None


def _scaled_gradient(ctx: Any, weights: torch.Tensor) -> torch.Tensor:
    """Scale the gradient by each token's weight, in place, since it is used once."""
    gradient: torch.Tensor | None = ctx.gradient
    ctx.gradient = None
    if gradient is None:
        raise RuntimeError("the loss is differentiated a second time")
    return gradient.mul_(weights[:, None])
