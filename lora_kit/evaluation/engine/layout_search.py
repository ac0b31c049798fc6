"""Search for the fastest batch layout with which a model scores correctly."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lora_kit.adapter.virtual_tokens import virtual_token_count
from lora_kit.backbone.encoder_decoder import is_encoder_decoder
from lora_kit.backbone.positions import PositionLimits
from lora_kit.data.tokenization import IGNORE_INDEX, Example
from lora_kit.evaluation.engine.prefix import encode_prefix
from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer, compute_outcomes
from lora_kit.evaluation.item import (
    ChoiceRequest,
    GenerationRequest,
    HeadRequest,
    LossRequest,
    Request,
    prompt_and_answer_length,
)
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.out_of_memory import is_out_of_memory_error

# Requests that each layout is tried on, the shortest of a task.
PROBES = 2
# Last tokens of a long prefix that are used in a probe; enough to detect that a cache is ignored.
PREFIX_TOKENS = 48
# Fastest first; every model supports the last one.
LAYOUTS = tuple(
    BatchLayout(tree, prefix) for tree, prefix in itertools.product((True, False), repeat=2)
)


@torch.inference_mode()
def find_layout(
    scorer: Scorer, requests: Sequence[Request], prefix_ids: tuple[int, ...]
) -> BatchLayout:
    """Return the fastest layout that reproduces the likelihoods of one row per branch.

    Layers that carry a state along the row (convolutions, linear attention, state-space layers)
    silently ignore a tree attention mask, so that the choices would leak into one another.

    Args:
        scorer: model with the arm active.
        requests: requests of one kind.
        prefix_ids: tokens that all requests begin with, possibly none.
    """
    if isinstance(requests[0], HeadRequest) or is_encoder_decoder(scorer.model):
        return LAYOUTS[-1]  # one row per text, or per source and answer, is the only layout
    candidates = possible_layouts(str(scorer.model.config._attn_implementation))
    shortest = sorted(requests, key=lambda request: request.length)[:PROBES]
    cut = max(len(prefix_ids) - PREFIX_TOKENS, 0)
    probes = [_probe(request, cut) for request in shortest]
    expected = _likelihoods(scorer, probes, LAYOUTS[-1], ())
    # Above rounding errors: measured 1e-4 nats in float32, some tenths in half precision.
    tolerance = 1e-3 if scorer.model.dtype == torch.float32 else 0.5
    for layout in candidates[:-1]:
        try:
            result = _likelihoods(scorer, probes, layout, prefix_ids[cut:] if layout.prefix else ())
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory_error(error):
                raise
            continue  # the model does not support the mask or the cache
        if all(abs(a - b) <= tolerance for a, b in zip(result, expected, strict=True)):
            return layout
    return LAYOUTS[-1]


def possible_layouts(attention: str) -> tuple[BatchLayout, ...]:
    """Return the layouts that are safe to try with an attention implementation, fastest first.

    Flash attention expects a mask of (batch, keys). From the four-dimensional mask of a tree it
    computes indices out of bounds, which breaks the CUDA context for every later call.
    """
    return tuple(
        layout for layout in LAYOUTS if not (layout.tree and attention.startswith("flash"))
    )


def within_window(layout: BatchLayout, scorer: Scorer, requests: Sequence[Request]) -> BatchLayout:
    """Return the layout, or the slowest one if a request exceeds the model's sliding window.

    A tree attention mask would let windowed layers attend to tokens outside of their window.

    Raises:
        EvaluationError: if virtual tokens would be outside of the window in some batches only, or
            if an item has too few positions left after them.
    """
    window = getattr(scorer.model.config.get_text_config(), "sliding_window", None)
    longest, before = max(request.length for request in requests), virtual_token_count(scorer.model)
    if before:
        _require_places(scorer.model, requests, before)
    if not window or before + longest <= window:
        return layout
    if before:
        raise EvaluationError(
            f"suite: items exceed the backbone's sliding window of {window} tokens (got {before} "
            f"virtual tokens and an item of {longest} tokens), so the padding of a batch would "
            "decide whether layers attend to the adapter. Fix: lower shots, max_length or "
            "max_new_tokens of the tasks, or use an adapter method without virtual tokens"
        )
    return LAYOUTS[-1]


def _require_places(model: Any, requests: Sequence[Request], before: int) -> None:
    positions = PositionLimits.of(model.get_base_model())
    for request in requests:
        if overflow := positions.overflow(*prompt_and_answer_length(request), before):
            raise EvaluationError(
                f"suite: an item after {before} virtual tokens {overflow}. Fix: lower shots, "
                "max_length or max_new_tokens of the tasks, or use an adapter method without "
                "virtual tokens"
            )


def _probe(request: Request, cut: int) -> Request:
    """Return a request with a likelihood, without the first `cut` tokens of the original."""
    if isinstance(request, LossRequest):
        example = request.example
        return LossRequest(Example(example.input_ids[cut:], example.labels[cut:]))
    assert not isinstance(request, HeadRequest)
    prompt = request.prompt_ids[cut:]
    if isinstance(request, ChoiceRequest):
        return replace(request, prompt_ids=prompt)
    assert isinstance(request, GenerationRequest)
    return LossRequest(Example(prompt, (*[IGNORE_INDEX] * (len(prompt) - 1), prompt[-1])))


def _likelihoods(
    scorer: Scorer, probes: Sequence[Request], layout: BatchLayout, prefix_ids: tuple[int, ...]
) -> list[Any]:
    prefix = encode_prefix(scorer.model, prefix_ids, scorer.device) if prefix_ids else None
    outcomes = compute_outcomes(scorer, probes, layout, prefix)
    return list(itertools.chain(*(outcome.log_likelihoods for outcome in outcomes)))
