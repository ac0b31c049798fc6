"""Whether examples that share a row see one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lora_kit.data.tokenization import Example

TOKENS = 16


@torch.inference_mode()
def packed_difference(model: Any, examples: Sequence[Example]) -> float:
    """The largest difference between an example's logits alone and behind another in one row.

    Where there is no attention mask, transformers tells examples apart by positions that begin
    anew; whether a backbone's attention heeds that, only a try says.

    Args:
        model: a causal language model.
        examples: the first and the last of them are tried, their first tokens.
    """
    first, second = (list(examples[place].input_ids[:TOKENS]) for place in (0, -1))
    was_training = model.training
    model.eval()
    try:
        together = _logits(model, [*first, *second], [*range(len(first)), *range(len(second))])
        alone = _logits(model, second, list(range(len(second))))
    finally:
        model.train(was_training)
    return float((together[len(first) :] - alone).abs().max())


@torch.inference_mode()
def logit_spacing(model: Any, examples: Sequence[Example]) -> float:
    """The distance of neighbouring numbers at the largest logit, in the backbone's coarsest dtype.

    Logits may come in float32 and are no more exact than the weights that they are made with.

    Args:
        model: a causal language model.
        examples: the last of them is looked at, its first tokens.
    """
    ids = list(examples[-1].input_ids[:TOKENS])
    largest = float(_logits(model, ids, list(range(len(ids)))).abs().max())
    dtypes = {p.dtype for p in model.parameters() if p.dtype.is_floating_point}
    return max(torch.finfo(dtype).eps for dtype in dtypes) * largest


def _logits(model: Any, ids: list[int], positions: list[int]) -> torch.Tensor:
    """Take token ids and positions of one row; return (length, vocabulary) float32."""
    device = next(model.parameters()).device
    logits: torch.Tensor = model(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        use_cache=False,
    ).logits
    return logits[0].float()
