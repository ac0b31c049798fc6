"""Drift: KL divergence of the adapter's next-token distributions from the base's, per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lora_kit.backbone.encoder_decoder import Seq2SeqBatch, is_encoder_decoder
from lora_kit.data.supervision import Example
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.item import Item, prompt_and_answer_length
from lora_kit.modeling.likelihood import logits_at, token_kl
from lora_kit.modeling.model_inputs import pad_examples, to_device
from lora_kit.modeling.modes import adapter_disabled

MAX_PROMPTS = 16
"""Maximum number of prompts per suite, spread over its tasks: drift is an alarm, not a verdict."""
MIN_PROMPTS = 3
"""Minimum number of prompts per task, unless the task has fewer items."""
PROMPT_TOKENS = 64
"""Maximum tokens of a prompt for a decoder; the last ones are used."""
POSITIONS = 16
"""Last positions of a prompt that the divergence is averaged over."""
BATCH = 8
"""Prompts in a batch."""


def drift_items(work: Work) -> list[Item]:
    """Return the items whose prompts drift is measured on, spread evenly over the first look's."""
    count = max(MAX_PROMPTS // len(work.suite.tasks), MIN_PROMPTS)
    asked = [item for item in work.task.items if work.look_of(item.id) == 1]
    step = max(len(asked) // count, 1)
    return asked[::step][:count]


def drift_batches(work: Work) -> list[tuple[Item, ...]]:
    """Return the batches of `drift_items`, the same for any number of processes."""
    items = drift_items(work)
    return [tuple(items[n : n + BATCH]) for n in range(0, len(items), BATCH)]


def drift_prompt(work: Work, item: Item) -> tuple[int, ...]:
    """Return the tokens of an item that drift is measured on.

    These are the tokens of a loss example, or of the prompt otherwise: all of them for an
    encoder-decoder, the last `PROMPT_TOKENS` for a decoder.
    """
    ids, _ = prompt_and_answer_length(item.request)
    return ids if work.has_encoder else ids[-PROMPT_TOKENS:]


@torch.inference_mode()
def prompt_drift(
    model: Any, prompts: Sequence[tuple[int, ...]], pad_token_id: int, device: torch.device
) -> list[float]:
    """Compute KL(base || adapter) in nats per token, averaged over each prompt's last positions.

    Args:
        model: backbone with the adapter attached.
        prompts: token ids of each prompt, none empty.
        pad_token_id: token that fills shorter rows on the left.
        device: device of the model.

    Returns:
        One mean divergence per prompt.
    """
    padded = pad_examples([Example(p, p) for p in prompts], pad_token_id)
    measured = padded["attention_mask"].clone()
    measured[:, :-POSITIONS] = 0
    if is_encoder_decoder(model):
        starts = Seq2SeqBatch.of(model, padded["input_ids"], padded["attention_mask"]).starts
        measured *= torch.arange(measured.shape[1]) >= starts[:, None]
    places = measured.nonzero(as_tuple=True)
    batch = to_device(padded | {"places": torch.stack(places)}, device)
    rows, columns = batch["places"]
    adapted = logits_at(model, batch, rows, columns)
    with adapter_disabled(model):
        base = logits_at(model, batch, rows, columns)
    kl = token_kl(base, adapted).double().cpu()
    sums = torch.zeros(len(prompts), dtype=torch.float64).index_add_(0, places[0], kl)
    return (sums / measured.sum(dim=1)).tolist()
