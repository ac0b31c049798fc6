"""Pseudo-log-likelihoods of texts by a masked language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.requests import MaskedRequest
from lora_kit.modeling.masked import masked_batch, masked_nll
from lora_kit.modeling.model_inputs import to_device

# Tokens of a forward pass, padding included; each row of it predicts a single token.
PASS_TOKENS = {"cpu": 2048, "cuda": 32768}


def score_masked(
    model: Any, requests: Sequence[MaskedRequest], pad_token_id: int, device: torch.device
) -> list[Outcome]:
    """Compute the pseudo-log-likelihood of each text, each of its tokens masked in turn.

    Salazar et al. 2020, arXiv:1910.14659, equation 1.

    Args:
        model: masked language model with the arm active.
        requests: tokenized texts, of similar lengths.
        pad_token_id: token that fills shorter rows.
        device: device of the model.
    """
    rows = list(_masked_rows(requests))
    limit = PASS_TOKENS.get(device.type, PASS_TOKENS["cpu"])
    size = max(limit // max(len(request.input_ids) for request in requests), 1)
    parts = []
    for start in range(0, len(rows), size):
        batch = masked_batch(rows[start : start + size], pad_token_id)
        parts.append(masked_nll(model, to_device(batch, device)))
    # One transfer: on a GPU, a number that is read waits for it.
    nll = torch.cat(parts).double().cpu()
    sums = torch.split(nll, [len(request.positions) for request in requests])
    return [
        Outcome(log_likelihoods=(-float(one.sum()),), tokens=request.length)
        for one, request in zip(sums, requests, strict=True)
    ]


def _masked_rows(requests: Sequence[MaskedRequest]) -> Iterator[Example]:
    """Yield a row for each scored token of each text, in order, with the token as its label."""
    for request in requests:
        ids = request.input_ids
        for place in request.positions:
            labels = [IGNORE_INDEX] * len(ids)
            labels[place] = ids[place]
            masked = (*ids[:place], request.mask_token_id, *ids[place + 1 :])
            yield Example(masked, tuple(labels))
