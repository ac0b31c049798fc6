"""Does it follow from a merge's stored figures that its files are what was measured?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lora_kit.merging.limits import KEPT_BY_HALF, Limits, limits_for


def against_passing(merge: Mapping[str, Any], quantization: str) -> list[str]:
    """Why a merge did not pass, whatever it says itself; empty if it did.

    Args:
        merge: its record, as it lies on disk.
        quantization: of the backbone.
    """
    # Of the checkpoint's own weights, base + adapter are compared unquantized.
    compared = quantization if merge["into"] == "dequantized" else "none"
    try:
        found = merge["verification"]
        return list(_against(found, limits_for(merge["dtype"], found["computed_in"], compared)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f"its figures cannot be read: {type(error).__name__}: {error}"]


def _against(found: Mapping[str, Any], limits: Limits) -> Iterator[str]:
    """Yield each figure that is not within its limit; what is no number is within none."""
    if found["passed"] is not True or found["reasons"]:
        yield "; ".join(map(str, found["reasons"])) or "its comparison did not pass"
    agreement = float(found["top1_agreement"])
    if not limits.agreement <= agreement <= 1:
        yield (
            f"the most likely token is the same at {agreement:.1%} of the positions, "
            f"{limits.agreement:.0%} are wanted"
        )
    distance, control = float(found["mean_kl"]), float(found["control_mean_kl"])
    most = limits.most_kl(control)
    if not (0 <= distance <= most < math.inf):
        yield f"the distance is {distance:.2g} nats a token, {most:.2g} are allowed"
    of_each = {"least_kept": limits.kept, "median_kept": KEPT_BY_HALF, "most_kept": limits.kept}
    for name, (low, high) in of_each.items():
        share = found[name]
        if share is None and found["modules"]:
            yield f"{name} is not given, though {found['modules']} modules were tried"
        elif share is not None and not low <= float(share) <= high:
            yield f"{name} is {float(share):.2f}, allowed are {low} to {high}"
