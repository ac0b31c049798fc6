"""LoRA's initialisations from weights or data: their names.

PiSSA, OLoRA, CorDA and LoRA-GA begin with non-zero factors B0 A0 and subtract their product from
the backbone's weights, so that the base is lost for evaluation, retention and merging. Here the
weights stay as they are, and the adapter subtracts the product itself: it has twice the rank, the
first half begins as B0 A0 and is trained, the second half stays -B0 A0. PEFT saves such adapters in
the same form for others (`path_initial_model_for_weight_conversion`); it is plain LoRA to whoever
loads it.
"""

from __future__ import annotations

import re

from lora_kit.recipe.adapter import AdapterSpec

OPTION = "init_lora_weights"
# Initialisations that subtract their first factors from the weights.
SUBTRACTED = ("pissa", "olora", "corda", "lora_ga")
# Initialisations that are computed from training rows.
FROM_ROWS = ("corda", "eva", "lora_ga")
# Initialisations that need unquantized weights.
NOT_PACKED = ("corda", "lora_ga")
KNOWN = (*SUBTRACTED, "eva", "loftq")
# Sections of PEFT's configuration that only an initialisation reads.
SECTIONS = ("corda_config", "eva_config", "loftq_config", "lora_ga_config")


def initialisation_of(spec: AdapterSpec) -> str | None:
    """Return the initialisation that is computed before step 1; `None` if PEFT draws weights."""
    asked = spec.options.get(OPTION)
    if spec.method != "lora" or not isinstance(asked, str):
        return None
    # PiSSA's approximation is named with its number of iterations.
    kind = "pissa" if re.fullmatch(r"pissa_niter_[1-9]\d*", asked) else asked
    return kind if kind in KNOWN else None
