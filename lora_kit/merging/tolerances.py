"""Tolerances of a merge, and the rule by which a merge passes.

The tolerances admit what rounding does, and no wrong merge. Measured on SmolLM2-135M with an
adapter of four steps, whose changes are small (`python -m tests.benchmarks.merging --rounding`).
Stored in bfloat16 and computed in float32, 99.0% of the most likely tokens are the same, the
distance is 0.03% of the base's, and the module that loses most keeps 71% of the adapter's effect. A
merge with alpha halved keeps 50% in every module; a merge that did nothing keeps 0%, at the whole
distance of the base.

Computed in bfloat16, two models of the same weights that sum in another order are 2e-3 nats a token
apart, and 97.3% of their most likely tokens are the same. Only the modules, which are run in
float32, then tell a small change from none. Weights that lie on bfloat16's grid already, and are
stored in bfloat16 again, round the same change away: half of the modules keep less than 42%, which
is reported, and `merge.dtype: float32` keeps all of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Largest mean KL divergence, as a share of the base's own distance from base + adapter.
MAX_SHARE_OF_CONTROL = 0.05
# Share of the adapter's effect in the median module: rounding hardly changes it, a wrong scaling
# does.
MEDIAN_KEPT = (0.9, 1.1)
# Share of the adapter's effect in every module, by stored dtype; 8-bit layers also round their
# inputs.
KEPT = {
    "float32": (0.99, 1.01),
    "float16": (0.9, 1.1),
    "bfloat16": (0.5, 1.5),
    "int8": (0.9, 1.1),
}
# Largest distance of an expert's outputs from those of base + adapter, as a share of their norm, by
# the coarser one of stored and compute dtype: rounding of the weights makes 1.7e-3 in bfloat16.
# Two experts of random weights that stand in each other's place make 1.4.
EXPERT_ERROR = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}
# Changes of an expert's outputs, as a share of their norm, that rounding to the stored dtype erases
# (1/16 of its unit). Experts that the router never chose in training change so little.
BELOW_ROUNDING = {"float32": 2.0**-27, "float16": 2.0**-15, "bfloat16": 2.0**-12}
# Number of wrong experts that a reason names.
NAMED_EXPERTS = 8
# Least top-1 agreement, and nats a token that rounding alone may cost, by compute dtype. The values
# of float16 are not measured: float16 has three bits more than bfloat16, which makes the error in
# nats 64 times smaller.
COMPUTED = {"float32": (0.97, 1e-6), "float16": (0.97, 1e-4), "bfloat16": (0.93, 5e-3)}


@dataclass(frozen=True)
class MergeTolerances:
    """Largest differences between a merged model and base + adapter.

    Attributes:
        agreement: least share of positions with the same most likely token.
        rounding_kl: mean KL divergence that always passes, in nats a token.
        kept: least and largest share of the adapter's effect in every module and expert.
        expert_error: largest distance of an expert's outputs, as a share of their norm.
        below_rounding: largest change of an expert's outputs that need not be kept.
    """

    agreement: float
    rounding_kl: float
    kept: tuple[float, float]
    expert_error: float
    below_rounding: float

    def max_kl(self, control: float) -> float:
        """Return the largest mean KL divergence that passes, in nats a token.

        Args:
            control: mean KL divergence of the base from base + adapter, in nats a token.
        """
        return max(MAX_SHARE_OF_CONTROL * control, self.rounding_kl)


def tolerances_for(
    stored: str, computed: str = "float32", quantization: str = "none"
) -> MergeTolerances:
    """Return the tolerances of one comparison.

    Args:
        stored: dtype of the merged files.
        computed: dtype that both models compute in.
        quantization: quantization of the backbone that the merged model is compared with.

    Raises:
        KeyError: if a dtype is not known.
    """
    ranges = [KEPT[stored], *([KEPT["int8"]] if quantization == "int8" else [])]
    kept = min(low for low, _ in ranges), max(high for _, high in ranges)
    error = max(EXPERT_ERROR[stored], EXPERT_ERROR[computed])
    return MergeTolerances(*COMPUTED[computed], kept, error, BELOW_ROUNDING[stored])


def merge_failures(values: Mapping[str, Any], tolerances: MergeTolerances) -> Iterator[str]:
    """Yield the reasons why a merge does not pass.

    A value that is missing, NaN or impossible does not pass.

    Args:
        values: values of a `Verification`, by field name, computed or read from a file.
        tolerances: tolerances of the comparison.

    Raises:
        KeyError: if a value is not given.
        TypeError: if a value is no number.
        ValueError: if a value is a text that is no number.
    """
    agreement = float(values["top1_agreement"])
    if not tolerances.agreement <= agreement <= 1:
        yield (
            f"top1_agreement: the most likely token is the same at {agreement:.1%} of the "
            f"positions, {tolerances.agreement:.0%} are required"
        )
    distance, control = float(values["mean_kl"]), float(values["control_mean_kl"])
    allowed = tolerances.max_kl(control)
    if not (0 <= distance <= allowed < math.inf):
        yield (
            f"mean_kl: the distance is {distance:.2g} nats a token (base without adapter: "
            f"{control:.2g}), {allowed:.2g} are allowed"
        )
    coarse = "; the scaling differs, or the stored dtype is too coarse (fix: merge.dtype: float32)"
    least = values.get("least_kept_module") or "the least preserved module"
    for name, module, (low, high), cause in (
        ("median_kept", "the median module", MEDIAN_KEPT, coarse),
        ("least_kept", least, tolerances.kept, ""),
        ("most_kept", "the most amplified module", tolerances.kept, ""),
    ):
        share = values[name]
        if share is None and values["modules"]:
            yield f"{name}: missing, though {values['modules']} modules were compared"
        elif share is not None and not low <= float(share) <= high:
            yield (
                f"{name}: {module} keeps {float(share):.1%} of the adapter's effect, {low:.0%} to "
                f"{high:.0%} are allowed{cause}"
            )
    # Merges of earlier versions did not compare experts.
    if values.get("experts") is not None:
        yield from _expert_failures(values["experts"], tolerances)


def _expert_failures(values: Mapping[str, Any], tolerances: MergeTolerances) -> Iterator[str]:
    """Yield the reasons why the experts do not pass, given the values of an `ExpertComparison`."""
    wrong = values["wrong"]
    if wrong:
        more = f" and {len(wrong) - NAMED_EXPERTS} more" if len(wrong) > NAMED_EXPERTS else ""
        yield (
            f"experts: {len(wrong)} of {values['compared']} are not those of base and adapter: "
            f"{', '.join(wrong[:NAMED_EXPERTS])}{more}"
        )
    error = float(values["largest_error"])
    if not 0 <= error <= tolerances.expert_error:
        yield (
            f"experts: the outputs of {values['largest_error_expert']} are {error:.1e} of their "
            f"norm off, {tolerances.expert_error:.0e} is allowed"
        )
    is_shown = values["changed"] > values["below_rounding"]
    for name, expert, (low, high) in (
        ("median_kept", "the median expert", MEDIAN_KEPT),
        ("least_kept", values["least_kept_expert"], tolerances.kept),
        ("most_kept", values["most_kept_expert"], tolerances.kept),
    ):
        share = values[name]
        if is_shown and not (share is not None and low <= float(share) <= high):
            yield (
                f"experts: {expert} keeps {share if share is None else f'{float(share):.1%}'} of "
                f"the adapter's effect, {low:.0%} to {high:.0%} are allowed"
            )
