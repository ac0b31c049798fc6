"""Log probabilities of answers, without computing the logits of prompts.

TRL 1.16 replaces the base's `forward` with one that returns log probabilities. On a CPU, TRL's
version projects every position to the vocabulary and computes four values for each. For pairs of
docstrings, where one token in ten is scored, this projection takes most of a step.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from trl.trainer.utils import FusedCausalLMOutput

from lora_kit.data.supervision import IGNORE_INDEX
from lora_kit.modeling.likelihood import logits_at, token_nll

if TYPE_CHECKING:
    from peft import PeftModel


@contextmanager
def restoring_forward(model: PeftModel) -> Iterator[None]:
    """Restore the base's original `forward` on exit."""
    base = model.get_base_model()
    before = vars(base).get("forward")
    try:
        yield
    finally:
        vars(base).pop("forward", None)
        if before is not None:
            base.forward = before


def score_answers_only(model: PeftModel, temperature: float = 1.0) -> None:
    """Replace TRL's `forward` with one that computes the same values at labelled positions only.

    Args:
        model: the backbone with its adapter, whose base's `forward` TRL has replaced.
        temperature: divisor of the logits.
    """
    base = model.get_base_model()
    original: Callable[..., Any] = base.forward

    def forward(_base: Any, *args: Any, fused_lm_head: bool = False, **inputs: Any) -> Any:
        if not fused_lm_head:
            return original(*args, **inputs)
        return _answer_log_probs(original, base.get_output_embeddings(), inputs, temperature)

    # `generate` reads the signature to find out which inputs it may pass.
    forward.__wrapped__ = type(base).forward  # type: ignore[attr-defined]
    base.forward = types.MethodType(forward, base)


def _answer_log_probs(
    forward: Callable[..., Any],
    head: torch.nn.Module,
    inputs: dict[str, torch.Tensor],
    temperature: float,
) -> FusedCausalLMOutput:
    """Score the next token at each position but the last; 0 where the next token has no label.

    Args:
        forward: `forward` of the base before this patch.
        head: output head of the base.
        inputs: `input_ids`, `attention_mask` and `labels`, each (batch, length) int64.
        temperature: divisor of the logits.

    Returns:
        `log_probs`, `entropy` and `mean_logits`, (batch, length - 1) float32, in nats, and
        `is_top1`, of the same shape, bool.
    """
    attention = inputs["attention_mask"]
    positioned = {**inputs, "position_ids": (attention.cumsum(1) - 1).clamp(min=0)}
    targets = inputs["labels"][:, 1:]
    mask = targets != IGNORE_INDEX
    rows, columns = mask.nonzero(as_tuple=True)
    logits = logits_at(forward, positioned, rows, columns, head) / temperature
    next_tokens = targets[rows, columns]
    log_probs = -token_nll(logits, next_tokens)
    with torch.no_grad():
        detached = logits.detach().float()
        all_log_probs = detached.log_softmax(dim=-1)
        entropies = -(all_log_probs.exp() * all_log_probs).sum(dim=-1)
        values = (entropies, detached.mean(dim=-1), detached.argmax(dim=-1) == next_tokens)
    entropy, mean_logits, is_top1 = (
        torch.zeros(mask.shape, dtype=one.dtype, device=one.device).masked_scatter(mask, one)
        for one in values
    )
    zeros = torch.zeros(mask.shape, dtype=log_probs.dtype, device=log_probs.device)
    return FusedCausalLMOutput(
        log_probs=zeros.masked_scatter(mask, log_probs),
        entropy=entropy,
        mean_logits=mean_logits,
        is_top1=is_top1,
        label_mask=mask,
    )
