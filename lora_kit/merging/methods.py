"""Which adapters can be merged, and which of them tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_kit.adapter.attach import ADAPTER_CONFIG
from lora_kit.adapter.saved_configuration import read_configuration, require_options
from lora_kit.runtime.errors import MergeError

if TYPE_CHECKING:
    from peft import PeftConfig

# Methods whose layers PEFT can fill and merge one at a time, with the same result as all at once;
# tests/merging/test_methods.py has each of them. Others may read the backbone's weights when they
# are attached (OSF and PSOFT decompose them), and go through PEFT with the whole model in memory.
STREAMED = frozenset(
    {
        *("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "PVERA", "HRA"),
        *("FOURIERFT", "LN_TUNING", "SHIRA", "MISS", "RANDLORA", "TRAINABLE_TOKENS", "VBLORA"),
        *("C3A", "ROAD", "WAVEFT", "DELORA", "HIRA", "GRALORA", "TINYLORA", "UNILORA", "DEFT"),
    }
)
# Options of LoRA that make another method of it.
VARIANTS = (
    "velora_config",
    "use_qalora",
    "monteclora_config",
    "layer_replication",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
)
# Initialisations that take something out of the backbone's weights; of the residues, PEFT computes
# the same again from the weights alone.
RESIDUES = ("pissa", "olora")
TAKES_A_RESIDUE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def adapter_configuration(adapter: Path) -> PeftConfig:
    """The configuration of an adapter that has something to merge.

    Raises:
        MergeError: if it cannot be read, or the method changes no weight.
    """
    config = read_configuration(adapter / ADAPTER_CONFIG, MergeError)
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise MergeError(
            f"{adapter}: {config.peft_type.value} puts tokens of its own before the text and "
            "changes no weight, so there is nothing to merge; release it as an adapter"
        )
    if config.task_type == "SEQ_CLS":
        raise MergeError(
            f"{adapter}: a classifier or a reward model: its head cannot be merged into a language "
            "model. What ships is the adapter directory itself: head, names of the outputs "
            "(config.json) and all that PEFT loads"
        )
    if getattr(config, "alora_invocation_tokens", None):
        raise MergeError(
            f"{adapter}: alora_invocation_tokens: the adapter is on for a part of the text alone, "
            "which merged weights cannot be; release it as an adapter"
        )
    require_options(config, adapter / ADAPTER_CONFIG, MergeError)
    config.inference_mode = True
    return config


def is_streamed(config: PeftConfig) -> bool:
    """Whether it is merged tensor by tensor; else the whole model goes through PEFT in memory."""
    plain = not any(getattr(config, name, None) for name in VARIANTS)
    return config.peft_type.value in STREAMED and plain


def residue_of(config: PeftConfig, adapter: Path) -> str:
    """The initialisation that took something out of the weights; empty if none did.

    Raises:
        MergeError: if what it took is not known from the weights.
    """
    start = getattr(config, "init_lora_weights", None)
    if not isinstance(start, str) or not start.lower().startswith(TAKES_A_RESIDUE):
        return ""
    if start.lower() not in RESIDUES:
        raise MergeError(
            f"{adapter}: init_lora_weights: {start} took something out of the backbone's weights "
            "that cannot be computed again from the weights alone; save the adapter with PEFT's "
            "path_initial_model_for_weight_conversion and merge that"
        )
    return start.lower()
