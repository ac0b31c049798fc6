"""Checks of the tokenized examples that run before step 1."""

from __future__ import annotations

from contextlib import nullcontext

from lora_kit.backbone.attention import FLASH, attention_of
from lora_kit.data.tokenization import end_of_turn_id
from lora_kit.preflight.context import PreflightContext
from lora_kit.preflight.isolation import logit_spacing, packed_difference, shortened
from lora_kit.runtime.errors import DataError, TrainingError

# Smallest difference between logits that counts as a packing leak: two float32 computations of the
# same logits differ by 1e-5 (measured), visible neighbours change them by more than 0.1. In half
# precision, two computations differ by several spacings between adjacent numbers of that dtype at
# the magnitude of the logits.
LEAK = 1e-2
SPACINGS = 16


def require_supervised_tokens(context: PreflightContext) -> None:
    """Refuse with DataError examples without any supervised token."""
    if not any(example.supervised for example in context.examples):
        raise DataError(
            f"data: none of the {len(context.examples)} examples has a supervised token, so the "
            "loss would be 0 and nothing would be trained. Fix: raise data.max_length, or check "
            "data.train_on"
        )


def require_supervised_end_of_turn(context: PreflightContext) -> None:
    """Refuse with DataError examples that contain ends of turns but supervise none."""
    try:
        end = end_of_turn_id(context.loaded_backbone.tokenizer)
    except DataError:
        # Tokenization refuses conversations if the template has no such token, so these examples
        # are plain texts.
        return
    present = any(end in example.input_ids for example in context.examples)
    supervised = any(end in example.labels for example in context.examples)
    if present and not supervised:
        raise DataError(
            "data: the end-of-turn token is never supervised in any example, so the model would "
            "not learn to stop. Fix: raise data.max_length, so that answers are not truncated"
        )


def refuse_double_bos(context: PreflightContext) -> None:
    """Refuse with DataError examples that begin with two beginning-of-text tokens."""
    start = context.loaded_backbone.tokenizer.bos_token_id
    for example in context.examples:
        if start is not None and example.input_ids[:2] == (start, start):
            raise DataError(
                f"{example.origin or 'data'}: begins with two beginning-of-text tokens, one from "
                "the chat template and one from the tokenizer, which the backbone has never seen. "
                "Fix: remove bos_token from the chat template or from the row"
            )


def refuse_packing_leak(context: PreflightContext) -> str | None:
    """Refuse with TrainingError packing on a backbone that attends across packed examples.

    Flash attention computes on GPUs only, where a model that will be sharded is not yet.
    """
    model = context.adapted_model
    attention = attention_of(model)
    if attention in FLASH and next(model.parameters()).device.type == "cpu":
        return (
            f"data.packing: not tried before sharding if {attention} separates the examples of a "
            "packed row; it is told their lengths"
        )
    with shortened(model) if context.launch.sharded else nullcontext():
        difference = packed_difference(model, context.examples)
        spacing = logit_spacing(model, context.examples)
    if difference > max(LEAK, SPACINGS * spacing):
        raise TrainingError(
            "data.packing: this backbone attends across the examples of one packed row (got logits "
            f"that differ by {difference:.2g} from those of the example alone). Fix: set "
            "data.packing: false"
        )
    return None
