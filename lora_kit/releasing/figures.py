"""Does it follow from a merge's stored figures that its files are what was measured?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lora_kit.merging.verify import (
    KEPT_BY_HALF,
    LEAST_AGREEMENT,
    MOST_SHARE_OF_CONTROL,
    ROUNDING_KL,
    kept_limits,
)


def against_passing(merge: Mapping[str, Any], quantization: str) -> list[str]:
    """Why a merge did not pass, whatever it says itself; empty if it did.

    Args:
        merge: its record, as it lies on disk.
        quantization: of the backbone.
    """
    # Of the checkpoint's own weights, base + adapter are compared unquantized.
    compared = quantization if merge["into"] == "dequantized" else "none"
    try:
        limits = kept_limits(merge["dtype"], compared)
        return list(_against(merge["verification"], limits))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f"its figures cannot be read: {type(error).__name__}: {error}"]


def _against(found: Mapping[str, Any], kept: tuple[float, float]) -> Iterator[str]:
    """Yield each figure that is not within its limit; what is no number is within none."""
    if found["passed"] is not True or found["reasons"]:
        yield "; ".join(map(str, found["reasons"])) or "its comparison did not pass"
    agreement = float(found["top1_agreement"])
    if not LEAST_AGREEMENT <= agreement <= 1:
        yield (
            f"the most likely token is the same at {agreement:.1%} of the positions, "
            f"{LEAST_AGREEMENT:.0%} are wanted"
        )
    distance, control = float(found["mean_kl"]), float(found["control_mean_kl"])
    most = max(MOST_SHARE_OF_CONTROL * control, ROUNDING_KL)
    if not (0 <= distance <= most < math.inf):
        yield f"the distance is {distance:.2g} nats a token, {most:.2g} are allowed"
    of_each = {"least_kept": kept, "median_kept": KEPT_BY_HALF, "most_kept": kept}
    for name, (low, high) in of_each.items():
        share = found[name]
        if share is None and found["modules"]:
            yield f"{name} is not given, though {found['modules']} modules were tried"
        elif share is not None and not low <= float(share) <= high:
            yield f"{name} is {float(share):.2f}, allowed are {low} to {high}"
