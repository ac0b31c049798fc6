"""Search for the fastest batch layout with which a model scores correctly.

Each layout scores several requests in one batch: short ones, which are padded, and long ones. The
result is compared with the same requests alone, each continuation in a row of its own, without
padding or a cache.

In float32, log-likelihoods may differ by 1e-3 nats; rounding accounts for 1e-4.

In half precision, a difference of log-likelihoods says little: rounding moves a token by 0.05 nats,
and so does a layout whose positions are shifted by one. Compared are the hidden states before the
output head, whose hundreds of values average rounding out. The bound is measured, not assumed: the
difference that the dtype itself makes between two equal orders of computation. A change of the last
bit of the embeddings lets every later operation round anew, as a different order of its sums would.
On a model of 135M parameters (30 blocks), that moves the hidden states by 2.5% in bfloat16 and by
0.3% in float16. Right layouts moved them by 0.4 to 0.9 times as much; positions shifted by one
after a prefix by 2.1 times or more in bfloat16 and 11 times or more in float16; continuations
shifted by one in a tree by 3.7 times or more; a mask that is ignored by 7 times or more.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lora_kit.adapter.virtual_tokens import virtual_token_count
from lora_kit.backbone.encoder_decoder import is_encoder_decoder
from lora_kit.backbone.positions import PositionLimits
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.evaluation.engine.rounding import RoundingBound, score_probes
from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer
from lora_kit.evaluation.requests import (
    ChoiceRequest,
    GenerationRequest,
    HeadRequest,
    LossRequest,
    Request,
    prompt_and_answer_length,
)
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.out_of_memory import free_memory, is_out_of_memory_error

# Shortest and longest requests of a task, together in one batch, that each layout is tried on.
PROBES = 2
# Continuations of a probe, and tokens at either end of a text, that are compared.
MAX_BRANCHES, MAX_TOKENS = 8, 64
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
    """Return the fastest layout in which several requests score as each of them alone.

    Layers that carry a state along the row (convolutions, linear attention, state-space layers)
    silently ignore a tree attention mask, so that the choices would leak into one another.

    Args:
        scorer: model with the arm active.
        requests: requests of one kind.
        prefix_ids: tokens that all requests begin with, possibly none.
    """
    if isinstance(requests[0], HeadRequest) or is_encoder_decoder(scorer.model):
        return LAYOUTS[-1]  # one row per text, or per source and answer, is the only layout
    cut = max(len(prefix_ids) - PREFIX_TOKENS, 0)
    ordered = sorted(requests, key=lambda request: request.length)
    shortest, longest = ordered[:PROBES], ordered[PROBES:][-PROBES:]
    probes = [_probe(request, cut, len(prefix_ids)) for request in (*shortest, *longest)]
    # Several long rows may exceed the memory, unlike the batches of the evaluation.
    for several in (probes, probes[: len(shortest)], probes[:1]):
        try:
            return _fastest(scorer, several, prefix_ids[cut:])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory_error(error):
                raise
        free_memory()
    return LAYOUTS[-1]  # the evaluation names the item that does not fit


def _fastest(scorer: Scorer, probes: Sequence[Request], prefix_ids: tuple[int, ...]) -> BatchLayout:
    bound = RoundingBound.measure(scorer, probes)
    for layout in possible_layouts(str(scorer.model.config._attn_implementation)):
        try:
            result = score_probes(scorer, probes, layout, prefix_ids if layout.prefix else ())
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory_error(error) or layout == LAYOUTS[-1]:
                raise
            continue  # the model does not support the mask or the cache
        if bound.explains(result):
            return layout
    if bound.is_finite:
        say(
            "evaluation: items score otherwise in a batch than alone, by more than rounding "
            "explains (padding that the model does not ignore, or int8 weights, whose rounding "
            "depends on the batch), so scores depend on the batches"
        )
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


def _probe(request: Request, cut: int, prefix: int) -> Request:
    """Return a request with likelihoods of many tokens, without the first `cut` of the original.

    Args:
        request: original request.
        cut: number of tokens to leave out.
        prefix: number of tokens that all requests begin with; none of them is scored.
    """
    assert not isinstance(request, HeadRequest)
    if isinstance(request, ChoiceRequest):
        branches = request.branches
        if len(branches) > MAX_BRANCHES:
            branches = branches[: MAX_BRANCHES // 2] + branches[-MAX_BRANCHES // 2 :]
        scored = tuple(replace(one, scored=len(one.input_ids)) for one in branches)
        return ChoiceRequest(request.prompt_ids[cut:], scored)
    if isinstance(request, GenerationRequest):
        # Any further token: the state after the whole prompt is compared, too.
        ids = (*request.prompt_ids[cut:], request.prompt_ids[-1])
    else:
        ids = request.example.input_ids[cut:]
    places = range(prefix - cut + 1, len(ids))
    compared = {*places[:MAX_TOKENS], *places[-MAX_TOKENS:]}
    labels = (token if n in compared else IGNORE_INDEX for n, token in enumerate(ids))
    return LossRequest(Example(ids, tuple(labels)))
