"""Decide which adapters can be merged, and which of them tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_kit.adapter.saved import ADAPTER_CONFIG
from lora_kit.adapter.saved_configuration import read_configuration, require_known_options
from lora_kit.backbone.heads import FEATURE_EXTRACTION, HEAD_TASK_TYPES
from lora_kit.runtime.errors import MergeError

if TYPE_CHECKING:
    from peft import PeftConfig

# Methods whose layers PEFT can fill and merge one at a time, with the same result as all at once;
# tests/merging/test_methods.py covers each of them. Other methods may read the backbone's weights
# when they are attached (OSF and PSOFT decompose them), and need the whole model in memory.
STREAMED = frozenset(
    {
        *("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "PVERA", "HRA"),
        *("FOURIERFT", "LN_TUNING", "SHIRA", "MISS", "RANDLORA", "TRAINABLE_TOKENS", "VBLORA"),
        *("C3A", "ROAD", "WAVEFT", "DELORA", "HIRA", "GRALORA", "TINYLORA", "UNILORA", "DEFT"),
    }
)
# Options of LoRA that turn it into another method.
VARIANTS = (
    "velora_config",
    "use_qalora",
    "monteclora_config",
    "layer_replication",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
)
# Initializations that leave a residual in the backbone's weights; for those in RESIDUAL_INITS, PEFT
# can compute the same residual again from the weights alone.
RESIDUAL_INITS = ("pissa", "olora")
WEIGHT_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def adapter_configuration(adapter: Path) -> PeftConfig:
    """Read the configuration of an adapter that can be merged.

    Raises:
        MergeError: if the configuration cannot be read, or the method changes no weight.
    """
    config = read_configuration(adapter / ADAPTER_CONFIG, MergeError)
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise MergeError(
            f"{adapter}: nothing to merge: the method adds virtual tokens and changes no weight "
            f"(got peft_type {config.peft_type.value}). Fix: release it as an adapter"
        )
    if config.task_type == FEATURE_EXTRACTION:
        raise MergeError(
            f"{adapter}: the vectors of texts are computed with the adapter on its backbone, "
            "without a language model to merge into (got task_type FEATURE_EXTRACTION). Fix: "
            "release the adapter directory itself, which names the pooling (embedding.json)"
        )
    if config.task_type in HEAD_TASK_TYPES.values():
        raise MergeError(
            f"{adapter}: the head of a classifier or a reward model cannot be merged into a "
            f"language model (got task_type {config.task_type}). Fix: release the adapter "
            "directory itself, which holds the head and the names of the outputs (config.json)"
        )
    if getattr(config, "alora_invocation_tokens", None):
        raise MergeError(
            f"{adapter}: alora_invocation_tokens: the adapter is active in a part of the text "
            f"only, which merged weights cannot be (got {config.alora_invocation_tokens}). Fix: "
            "release it as an adapter"
        )
    require_known_options(config, adapter / ADAPTER_CONFIG, MergeError)
    config.inference_mode = True
    return config


def is_streamed(config: PeftConfig) -> bool:
    """Return True if the adapter is merged tensor by tensor; else PEFT merges it in memory."""
    is_variant = any(getattr(config, name, None) for name in VARIANTS)
    return config.peft_type.value in STREAMED and not is_variant


def residual_initialization(config: PeftConfig, adapter: Path) -> str:
    """Return the initialization that left a residual in the base weights; empty if none did.

    Raises:
        MergeError: if the residual cannot be computed from the weights alone.
    """
    start = getattr(config, "init_lora_weights", None)
    if not isinstance(start, str) or not start.lower().startswith(WEIGHT_CHANGING_INITS):
        return ""
    if start.lower() not in RESIDUAL_INITS:
        raise MergeError(
            f"{adapter}: init_lora_weights: changed the backbone's weights in a way that cannot be "
            f"computed again from the weights alone (got {start}). Fix: save the adapter with "
            "PEFT's path_initial_model_for_weight_conversion, and merge that"
        )
    return start.lower()
