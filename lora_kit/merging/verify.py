"""Is the merged model on disk what was measured? Its answers against base + adapter's."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lora_kit.merging.answers import Answers, Questions
from lora_kit.merging.distance import kl_divergence, top1_agreement
from lora_kit.merging.limits import (
    COMPUTED,
    KEPT,
    KEPT_BY_HALF,
    MOST_SHARE_OF_CONTROL,
    Limits,
    limits_for,
)
from lora_kit.merging.measured import Measured
from lora_kit.merging.reloaded import Computing, answer_of_files
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.files import read_json


@dataclass(frozen=True)
class Verification:
    """How far the merged model is from base + adapter, and, as the control, how far the base is.

    KL divergences in nats a token, KL(base + adapter || other).

    Attributes:
        positions: at which distributions were compared.
        top1_agreement: share of positions with the same most likely token.
        mean_kl: mean over the positions.
        p99_kl: 99th percentile.
        control_top1_agreement: of the base without adapter.
        control_mean_kl: of the base without adapter; a merge that did nothing has this distance.
        texts: generated greedily, by both.
        same_texts: of them the same to the last token.
        modules: that the adapter changes, each tried on random inputs.
        least_kept: share of the adapter's change of a module's output that the merged module has:
            1 where all is there, 0 where nothing is; the lowest, `None` where no module could be
            tried (experts and norms take no inputs of their own).
        median_kept: of the module in the middle.
        most_kept: the highest.
        least_kept_module: that has the lowest.
        reasons: why it did not pass; empty if it did.
        computed_in: dtype of both models.
        mean_kl_to_trained: distance from the adapter on the weights that it was trained on, where
            it was merged into others.
    """

    positions: int
    top1_agreement: float
    mean_kl: float
    p99_kl: float
    control_top1_agreement: float
    control_mean_kl: float
    texts: int
    same_texts: int
    modules: int
    least_kept: float | None
    median_kept: float | None
    most_kept: float | None
    least_kept_module: str
    reasons: tuple[str, ...]
    computed_in: str = "float32"
    mean_kl_to_trained: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the files are what was measured."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with the limits that it was held to."""
        limits = {
            "most_share_of_control": MOST_SHARE_OF_CONTROL,
            "kept_by_half": KEPT_BY_HALF,
            "kept": KEPT,
            "computed": COMPUTED,
        }
        return asdict(self) | {"passed": self.passed, "limits": limits}


def verify_merged(
    merged: Path,
    measured: Measured,
    questions: Questions,
    computing: Computing,
    quantization: str = "none",
    trained: torch.Tensor | None = None,
) -> Verification:
    """Ask the merged model in a new process, and compare.

    Args:
        merged: directory of the merged model.
        measured: of base + adapter.
        questions: that were asked there.
        computing: how that was computed, and the merged model is to compute.
        quantization: of the backbone that was asked.
        trained: (positions, vocabulary), of the adapter on the weights that it was trained on,
            where `measured` is of others.

    Raises:
        MergeError: if the merged model cannot be loaded, or its answers are no numbers.
    """
    with tempfile.TemporaryDirectory() as folder:
        shipped = answer_of_files(merged, questions, computing, Path(folder))
    stored = str(read_json(merged / "config.json", MergeError).get("dtype"))
    computed = str(computing.dtype).removeprefix("torch.")
    found = compare(measured, shipped, limits_for(stored, computed, quantization))
    found = replace(found, computed_in=computed)
    if trained is None:
        return found
    distance = kl_divergence(trained, shipped.log_probabilities)
    return replace(found, mean_kl_to_trained=float(distance.mean()))


def compare(measured: Measured, shipped: Answers, limits: Limits | None = None) -> Verification:
    """Judge what the merged model answered.

    Args:
        measured: of base + adapter.
        shipped: of the merged model.
        limits: of `limits_for`, by default those of float32.

    Raises:
        MergeError: if its answers are no numbers.
    """
    limits = limits or limits_for("float32")
    truth = measured.adapted.log_probabilities
    kl = kl_divergence(truth, shipped.log_probabilities)
    control_kl = float(kl_divergence(truth, measured.control).mean())
    mean = float(kl.mean())
    if not math.isfinite(mean + control_kl):
        raise MergeError("the merged model's distributions are no numbers; its weights overflowed")
    kept = kept_shares(measured, shipped)
    lowest = min(kept, key=lambda name: kept[name], default="")
    agreement = top1_agreement(truth, shipped.log_probabilities)
    texts = measured.adapted.texts
    return Verification(
        positions=len(truth),
        top1_agreement=agreement,
        mean_kl=mean,
        p99_kl=float(kl.quantile(0.99)),
        control_top1_agreement=top1_agreement(truth, measured.control),
        control_mean_kl=control_kl,
        texts=len(texts),
        same_texts=int((texts == shipped.texts).all(dim=1).sum()),
        modules=len(kept),
        least_kept=kept.get(lowest),
        median_kept=median(kept.values()) if kept else None,
        most_kept=max(kept.values(), default=None),
        least_kept_module=lowest,
        reasons=tuple(_reasons(agreement, mean, control_kl, kept, limits)),
    )


def _reasons(
    agreement: float,
    mean: float,
    control: float,
    kept: Mapping[str, float],
    limits: Limits,
) -> Iterator[str]:
    if agreement < limits.agreement:
        yield (
            f"the most likely token is the same at {agreement:.1%} of the positions, "
            f"{limits.agreement:.0%} are wanted"
        )
    if mean > limits.most_kl(control):
        yield (
            f"the distance is {mean:.2g} nats a token, the base's without adapter {control:.2g}; "
            f"{limits.most_kl(control):.2g} are allowed"
        )
    least, most = limits.kept
    half = median(kept.values()) if kept else 1.0
    if not KEPT_BY_HALF[0] <= half <= KEPT_BY_HALF[1]:
        yield (
            f"the module in the middle has {half:.2f} of the change that the adapter makes: the "
            "scaling is another one, or the stored dtype is too coarse (merge.dtype: float32)"
        )
    odd = sorted(name for name, share in kept.items() if not least <= share <= most)
    if odd:
        yield (
            f"{len(odd)} of {len(kept)} modules do not do what the adapter makes them do, the "
            f"first: {odd[0]} ({kept[odd[0]]:.2f} of its change is there)"
        )


def kept_shares(measured: Measured, shipped: Answers) -> dict[str, float]:
    """Of each module, how much of the adapter's change of its outputs the merged one has.

    The projection of the merged module's change onto the adapter's: <d, d'> / <d, d>.
    """
    shares = {}
    for name, without in measured.base_outputs.items():
        change = (measured.adapted.outputs[name] - without).double()
        merged = (shipped.outputs[name] - without).double()
        size = float(change.square().sum())
        if size > 0:
            shares[name] = float((change * merged).sum()) / size
    return shares
