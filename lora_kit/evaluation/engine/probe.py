"""Which layouts of a batch a model bears, found out by trying."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lora_kit.adapter.virtual_tokens import tokens_before
from lora_kit.backbone.encoder_decoder import is_divided
from lora_kit.backbone.positions import Positions
from lora_kit.data.tokenization import IGNORED, Example
from lora_kit.evaluation.engine.prefix import encode
from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer, outcomes
from lora_kit.evaluation.item import (
    ChoiceRequest,
    GenerationRequest,
    LossRequest,
    OfHead,
    Request,
    tokens_of,
)
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.out_of_memory import lacks_memory

PROBES = 2
# Of a long prefix, what is enough to see whether the model heeds it.
PREFIX_TOKENS = 48
# The fastest first; the last is the one that every model bears.
WAYS = tuple(
    BatchLayout(tree, prefix) for tree, prefix in itertools.product((True, False), repeat=2)
)


@torch.inference_mode()
def find_way(
    scorer: Scorer, requests: Sequence[Request], prefix_ids: tuple[int, ...]
) -> BatchLayout:
    """The fastest way whose likelihoods are those of each branch in a row of its own.

    Layers that carry a state along the row (convolutions, linear attention, state spaces) do not
    heed the mask of a tree, without an error: the choices would leak into one another.
    """
    if isinstance(requests[0], OfHead) or is_divided(scorer.model):
        return WAYS[-1]  # a row a text, or a source and an answer, which is all there is
    possible = ways(str(scorer.model.config._attn_implementation))
    shortest = sorted(requests, key=lambda request: request.length)[:PROBES]
    cut = max(len(prefix_ids) - PREFIX_TOKENS, 0)
    probes = [_probe(request, cut) for request in shortest]
    wanted = _likelihoods(scorer, probes, WAYS[-1], ())
    # What rounding moves: 1e-4 nats in float32, measured; in half precision some tenths.
    tolerance = 1e-3 if scorer.model.dtype == torch.float32 else 0.5
    for way in possible[:-1]:
        try:
            found = _likelihoods(scorer, probes, way, prefix_ids[cut:] if way.prefix else ())
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            if lacks_memory(error):
                raise
            continue  # the model takes no such mask, or no such cache
        if all(abs(a - b) <= tolerance for a, b in zip(found, wanted, strict=True)):
            return way
    return WAYS[-1]


def ways(attention: str) -> tuple[BatchLayout, ...]:
    """Those that may be tried, the fastest first.

    Flash attention takes a mask of (batch, keys). From that of a tree, which has four dimensions,
    it would make indices out of bounds, and no later call to the GPU survives that.
    """
    return tuple(way for way in WAYS if not (way.tree and attention.startswith("flash")))


def within_window(way: BatchLayout, scorer: Scorer, requests: Sequence[Request]) -> BatchLayout:
    """The way, unless a request is longer than what layers with a window look back on.

    The mask of a tree would show them what lies outside of it.

    Raises:
        EvaluationError: if virtual tokens would lie outside of it for some batches alone, or leave
            an item no place.
    """
    window = getattr(scorer.model.config.get_text_config(), "sliding_window", None)
    longest, before = max(request.length for request in requests), tokens_before(scorer.model)
    if before:
        _require_places(scorer.model, requests, before)
    if not window or before + longest <= window:
        return way
    if before:
        raise EvaluationError(
            f"{before} virtual tokens and an item of {longest} tokens: layers of this backbone "
            f"look back on {window}, so that what they see of the adapter would hang on the "
            "padding of the batch. Shorten the items (shots, max_length, max_new_tokens of the "
            "suite's tasks), or use an adapter that changes layers"
        )
    return WAYS[-1]


def _require_places(model: Any, requests: Sequence[Request], before: int) -> None:
    positions = Positions.of(model.get_base_model())
    for request in requests:
        if lacking := positions.lacking(*tokens_of(request), before):
            raise EvaluationError(
                f"an item behind {before} virtual tokens {lacking}; shorten the items (shots, "
                "max_length, max_new_tokens of the suite's tasks), or use an adapter that changes "
                "layers"
            )


def _probe(request: Request, cut: int) -> Request:
    """The request without its first tokens, as one that has a likelihood."""
    if isinstance(request, LossRequest):
        example = request.example
        return LossRequest(Example(example.input_ids[cut:], example.labels[cut:]))
    assert not isinstance(request, OfHead)
    prompt = request.prompt_ids[cut:]
    if isinstance(request, ChoiceRequest):
        return replace(request, prompt_ids=prompt)
    assert isinstance(request, GenerationRequest)
    return LossRequest(Example(prompt, (*[IGNORED] * (len(prompt) - 1), prompt[-1])))


def _likelihoods(
    scorer: Scorer, probes: Sequence[Request], way: BatchLayout, prefix_ids: tuple[int, ...]
) -> list[Any]:
    prefix = encode(scorer.model, prefix_ids, scorer.device) if prefix_ids else None
    found = outcomes(scorer, probes, way, prefix)
    return list(itertools.chain(*(outcome.log_likelihoods for outcome in found)))
