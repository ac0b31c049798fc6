"""Verify a merged model on disk against base + adapter, as measured in training."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lora_kit.backbone.fingerprint import weight_files
from lora_kit.merging.distance import kl_divergence, top1_agreement
from lora_kit.merging.experts import ExpertComparison, compare_experts
from lora_kit.merging.predictions import ComparisonInputs, ModelOutputs
from lora_kit.merging.reference import ReferenceOutputs
from lora_kit.merging.reloaded import ComputeSettings, compute_outputs_in_subprocess
from lora_kit.merging.tensors import stored_by_key
from lora_kit.merging.tolerances import (
    BELOW_ROUNDING,
    COMPUTED,
    EXPERT_ERROR,
    KEPT,
    MAX_SHARE_OF_CONTROL,
    MEDIAN_KEPT,
    MergeTolerances,
    merge_failures,
    tolerances_for,
)
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.files import read_json
from lora_kit.runtime.temporaries import hidden_beside


@dataclass(frozen=True)
class Verification:
    """Distance of the merged model from base + adapter and, as the control, that of the base.

    KL divergences are KL(base + adapter || other), in nats a token.

    Attributes:
        positions: number of positions at which distributions were compared.
        top1_agreement: share of positions with the same most likely token.
        mean_kl: mean KL divergence over the positions.
        p99_kl: 99th percentile of the KL divergence.
        control_top1_agreement: `top1_agreement` of the base without adapter.
        control_mean_kl: `mean_kl` of the base without adapter; the distance of a merge that did
            nothing.
        texts: number of texts that both models generated greedily.
        same_texts: number of these that are equal to the last token.
        modules: number of modules that the adapter changes and that were run on random inputs.
        least_kept: lowest share of the adapter's effect on a module's output that the merged
            module keeps, 1 for all and 0 for none; `None` where no module could be run (fused
            experts, compared in `experts`, and norms take no inputs of their own).
        median_kept: median of that share over the modules.
        most_kept: highest such share.
        least_kept_module: name of the module with the lowest share.
        reasons: reasons why the merge did not pass; empty if it did.
        computed_in: dtype of both models.
        mean_kl_to_trained: `mean_kl` from the adapter on the weights it was trained on, where it
            was merged into other weights.
        experts: comparison of single experts; `None` if the adapter changes none.
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
    reasons: tuple[str, ...] = ()
    computed_in: str = "float32"
    mean_kl_to_trained: float | None = None
    experts: ExpertComparison | None = None

    @property
    def passed(self) -> bool:
        """True if the merged files compute what base + adapter compute, within the tolerances."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Return the verification as JSON, with the tolerances that it was held to."""
        limits = {
            "max_share_of_control": MAX_SHARE_OF_CONTROL,
            "median_kept": MEDIAN_KEPT,
            "kept": KEPT,
            "computed": COMPUTED,
            "expert_error": EXPERT_ERROR,
            "below_rounding": BELOW_ROUNDING,
        }
        return asdict(self) | {"passed": self.passed, "limits": limits}


def verify_merged(
    merged: Path,
    reference: ReferenceOutputs,
    inputs: ComparisonInputs,
    settings: ComputeSettings,
    quantization: str = "none",
    trained: torch.Tensor | None = None,
) -> Verification:
    """Run the merged model in a new process, and compare it with base + adapter.

    Args:
        merged: directory of the merged model.
        reference: outputs of base + adapter.
        inputs: inputs that the reference was computed on.
        settings: settings that the reference was computed with, and the merged model is run with.
        quantization: quantization of the backbone in the reference.
        trained: log-probabilities of the adapter on the weights that it was trained on, (positions,
            vocabulary) float32, where `reference` is on other weights.

    Raises:
        MergeError: if the merged model cannot be loaded, or its outputs are not finite.
    """
    with hidden_beside(Path(tempfile.gettempdir()) / "lora-kit") as folder:
        outputs = compute_outputs_in_subprocess(merged, inputs, settings, folder)
    stored = str(read_json(merged / "config.json", MergeError).get("dtype"))
    computed = str(settings.dtype).removeprefix("torch.")
    result = compare_merged(reference, outputs, tolerances_for(stored, computed, quantization))
    result = replace(result, computed_in=computed)
    if trained is None:
        return result
    distance = kl_divergence(trained, outputs.log_probabilities)
    return replace(result, mean_kl_to_trained=float(distance.mean()))


def compare_merged(
    reference: ReferenceOutputs, merged: ModelOutputs, tolerances: MergeTolerances | None = None
) -> Verification:
    """Compare the outputs of a merged model with those of base + adapter.

    Args:
        reference: outputs of base + adapter.
        merged: outputs of the merged model.
        tolerances: tolerances of `tolerances_for`; by default those of float32.

    Raises:
        MergeError: if outputs of the merged model are infinite or NaN.
    """
    tolerances = tolerances or tolerances_for("float32")
    expected = reference.adapted.log_probabilities
    kl = kl_divergence(expected, merged.log_probabilities)
    control_kl = float(kl_divergence(expected, reference.control).mean())
    mean = float(kl.mean())
    kept = kept_shares(reference, merged)
    experts = compare_experts(
        reference.base_expert_outputs,
        reference.adapted.expert_outputs,
        merged.expert_outputs,
        tolerances,
    )
    error = experts.largest_error if experts else 0.0
    if not math.isfinite(mean + control_kl + error + sum(kept.values())):
        raise MergeError(
            f"merged model: outputs are infinite or NaN (got mean KL {mean:.2g}), its weights "
            "overflowed. Fix: set merge.dtype to float32"
        )
    lowest = min(kept, key=lambda name: kept[name], default="")
    generated = reference.adapted.generated_ids
    result = Verification(
        positions=len(expected),
        top1_agreement=top1_agreement(expected, merged.log_probabilities),
        mean_kl=mean,
        p99_kl=float(kl.quantile(0.99)),
        control_top1_agreement=top1_agreement(expected, reference.control),
        control_mean_kl=control_kl,
        texts=len(generated),
        same_texts=int((generated == merged.generated_ids).all(dim=1).sum()),
        modules=len(kept),
        least_kept=kept.get(lowest),
        median_kept=median(kept.values()) if kept else None,
        most_kept=max(kept.values(), default=None),
        least_kept_module=lowest,
        experts=experts,
    )
    failures = merge_failures(asdict(result), tolerances)
    return replace(result, reasons=tuple(failures))


def kept_shares(reference: ReferenceOutputs, merged: ModelOutputs) -> dict[str, float]:
    """Compute the share of the adapter's effect that each merged module keeps.

    The share is the projection of the merged module's change d' onto the adapter's change d of the
    same outputs: <d, d'> / <d, d>. Modules that the adapter does not change have none.
    """
    shares = {}
    for name, base in reference.base_module_outputs.items():
        effect = (reference.adapted.module_outputs[name] - base).double()
        change = (merged.module_outputs[name] - base).double()
        energy = float(effect.square().sum())
        if energy > 0:
            shares[name] = float((effect * change).sum()) / energy
    return shares


def modified_tensors(
    base: Path, merged: Path, keys: Sequence[str], renamed: Mapping[str, str] | None = None
) -> list[str]:
    """Return the tensors, of those that the merge should copy, that differ from the backbone's.

    Compared in the stored dtype. Outputs alone would miss some of them: a row of an embedding is
    used only if the text has its token.

    Args:
        base: directory of the backbone.
        merged: directory of the merged model.
        keys: keys, in the merged files, of the tensors that the adapter does not change.
        renamed: key in the backbone's files of each of these that has another key there.
    """
    keys_before = renamed or {}
    before, after = stored_by_key(weight_files(base)), stored_by_key(weight_files(merged))
    return [
        key
        for key in keys
        if key not in after
        or not torch.equal(
            before[keys_before.get(key, key)].read().to(after[key].dtype), after[key].read()
        )
    ]
