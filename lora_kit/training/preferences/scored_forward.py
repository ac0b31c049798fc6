"""Log probabilities of answers, without the logits of prompts.

TRL 1.16 has the base's `forward` give log probabilities. On a CPU its own way projects every
position to the vocabulary and takes four figures of each: for pairs of docstrings, of whose tokens
one in ten is scored, that is most of a step.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from trl.trainer.utils import FusedCausalLMOutput

from lora_kit.data.tokenization import IGNORED
from lora_kit.modeling.likelihood import logits_at, token_nll

if TYPE_CHECKING:
    from peft import PeftModel


@contextmanager
def forward_put_back(model: PeftModel) -> Iterator[None]:
    """Have the base's `forward` again afterwards that it had before."""
    base = model.get_base_model()
    before = vars(base).get("forward")
    try:
        yield
    finally:
        vars(base).pop("forward", None)
        if before is not None:
            base.forward = before


def score_answers_alone(model: PeftModel, temperature: float = 1.0) -> None:
    """Put a `forward` in the place of TRL's that gives the same figures where labels are.

    Args:
        model: the backbone with its adapter, whose base TRL has given a `forward` of its own.
        temperature: that logits are divided by.
    """
    base = model.get_base_model()
    theirs: Callable[..., Any] = base.forward

    def forward(_base: Any, *args: Any, fused_lm_head: bool = False, **inputs: Any) -> Any:
        if not fused_lm_head:
            return theirs(*args, **inputs)
        return _scored(theirs, base.get_output_embeddings(), inputs, temperature)

    # `generate` looks at the signature for what it may pass.
    forward.__wrapped__ = type(base).forward  # type: ignore[attr-defined]
    base.forward = types.MethodType(forward, base)


def _scored(
    plain: Callable[..., Any],
    head: torch.nn.Module,
    inputs: dict[str, torch.Tensor],
    temperature: float,
) -> FusedCausalLMOutput:
    """Figures of the next token at each position but the last, 0 where it has no label.

    Args:
        plain: the model's own forward.
        head: its output head.
        inputs: `input_ids`, `attention_mask` and `labels`, each (batch, length) int64.
        temperature: that logits are divided by.

    Returns:
        `log_probs`, `entropy` and `mean_logits`, (batch, length - 1) float32, in nats, and
        `is_top1`, of the same shape, bool.
    """
    attention = inputs["attention_mask"]
    places = {**inputs, "position_ids": (attention.cumsum(1) - 1).clamp(min=0)}
    targets = inputs["labels"][:, 1:]
    mask = targets != IGNORED
    rows, columns = mask.nonzero(as_tuple=True)
    logits = logits_at(plain, places, rows, columns, head) / temperature
    wanted = targets[rows, columns]
    log_probs = -token_nll(logits, wanted)
    with torch.no_grad():
        likely = logits.detach().float()
        logs = likely.log_softmax(dim=-1)
        spread = -(logs.exp() * logs).sum(dim=-1)
        figures = (spread, likely.mean(dim=-1), likely.argmax(dim=-1) == wanted)
    entropy, mean_logits, is_top1 = (
        torch.zeros(mask.shape, dtype=one.dtype, device=one.device).masked_scatter(mask, one)
        for one in figures
    )
    zeros = torch.zeros(mask.shape, dtype=log_probs.dtype, device=log_probs.device)
    return FusedCausalLMOutput(
        log_probs=zeros.masked_scatter(mask, log_probs),
        entropy=entropy,
        mean_logits=mean_logits,
        is_top1=is_top1,
        label_mask=mask,
    )
