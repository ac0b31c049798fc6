"""Traps of heads."""

from __future__ import annotations

from typing import Any

import torch

from lora_kit.adapter.attach import wrap_with_adapter
from lora_kit.preflight.traps.specimens import SIZES
from lora_kit.preflight.traps.trap import Trap, is_refused
from lora_kit.recipe.adapter import AdapterSpec


def _token_classifier() -> Any:
    """Return a random token classifier."""
    from transformers import LlamaConfig, LlamaForTokenClassification

    with torch.random.fork_rng(devices=[]):
        return LlamaForTokenClassification(LlamaConfig(**SIZES, num_labels=3)).eval()


def heads_of_words_are_present() -> bool:
    """Return true if PEFT takes the head of a token classifier for a target of `all-linear`."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, task_type="TOKEN_CLS", target_modules="all-linear")
    try:
        get_peft_model(_token_classifier(), config)
    except TypeError:
        return True
    return False


def heads_of_words_are_guarded() -> bool:
    """Return true if an adapter on all linear layers leaves the head out."""
    return not is_refused(wrap_with_adapter, _token_classifier(), AdapterSpec(rank=2))


HEAD_TRAPS = (
    Trap(
        "heads of words",
        "`all-linear` includes the head of a token classifier, which PEFT then cannot save.",
        "the head is left out by `exclude_modules`",
        heads_of_words_are_present,
        heads_of_words_are_guarded,
    ),
)
