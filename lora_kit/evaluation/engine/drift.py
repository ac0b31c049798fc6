"""Drift: how far the adapter's next-token distributions are from the base's, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lora_kit.backbone.encoder_decoder import Seq2SeqBatch, is_divided
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.item import Item, LossRequest, OfHead
from lora_kit.modeling.likelihood import logits_at, to_device
from lora_kit.modeling.modes import adapter_disabled

PROMPTS = 16
"""Prompts of a suite at most, spread over its tasks: drift is an alarm, not a verdict."""
FEWEST = 3
"""Prompts of a task, unless it has fewer items."""
PROMPT_TOKENS = 64
POSITIONS = 16
BATCH = 8


def drifters(work: Work) -> list[Item]:
    """The items whose prompts drift is measured on, spread over the task."""
    wanted = max(PROMPTS // len(work.suite.tasks), FEWEST)
    step = max(len(work.task.items) // wanted, 1)
    return list(work.task.items[::step][:wanted])


def batches(work: Work) -> list[tuple[Item, ...]]:
    """The same however many processes there are, as with all batches."""
    items = drifters(work)
    return [tuple(items[n : n + BATCH]) for n in range(0, len(items), BATCH)]


def prompt_ids(work: Work, item: Item) -> tuple[int, ...]:
    """What of an item is a prompt to drift on: its last tokens, of an example all of it."""
    request = item.request
    assert not isinstance(request, OfHead)  # of a language model alone
    ids = request.example.input_ids if isinstance(request, LossRequest) else request.prompt_ids
    return ids if work.has_encoder else ids[-PROMPT_TOKENS:]


@torch.inference_mode()
def token_kl(
    model: Any, prompts: Sequence[tuple[int, ...]], pad_token_id: int, device: torch.device
) -> list[float]:
    """KL(base || adapter) in nats, of each prompt the mean over its last positions.

    Args:
        model: the backbone with the adapter attached.
        prompts: token ids, none empty.
        pad_token_id: fills shorter rows on the left.
        device: where the model is.
    """
    length = max(map(len, prompts))
    ids = torch.tensor([[pad_token_id] * (length - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    batch = to_device(
        {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
        },
        device,
    )
    seen = batch["attention_mask"].clone()
    seen[:, :-POSITIONS] = 0
    if is_divided(model):
        starts = Seq2SeqBatch.of(model, batch["input_ids"], batch["attention_mask"]).starts
        seen *= torch.arange(length, device=device) >= starts[:, None]
    rows, columns = seen.nonzero(as_tuple=True)
    adapted = logits_at(model, batch, rows, columns).float().log_softmax(dim=-1)
    with adapter_disabled(model):
        base = logits_at(model, batch, rows, columns).float().log_softmax(dim=-1)
    kl = (base.exp() * (base - adapted)).sum(dim=-1).double()
    sums = torch.zeros(len(prompts), dtype=torch.float64, device=device).index_add_(0, rows, kl)
    return (sums / seen.sum(dim=1)).tolist()
