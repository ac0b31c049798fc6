"""Is the merged model on disk what was measured? Its distributions against base + adapter's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lora_kit.adapters import switched_off
from lora_kit.backbone import Backbone
from lora_kit.data.tokenization import IGNORED, Example
from lora_kit.errors import MergeError

MOST_POSITIONS = 512
LEAST_AGREEMENT = 0.97
MOST_SHARE_OF_CONTROL = 0.05
# Below it two float32 computations of one thing differ by rounding alone.
ROUNDING_KL = 1e-6


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
        passed: agreement and distance are within the limits below.
    """

    positions: int
    top1_agreement: float
    mean_kl: float
    p99_kl: float
    control_top1_agreement: float
    control_mean_kl: float
    passed: bool
    least_agreement: float = LEAST_AGREEMENT
    most_share_of_control: float = MOST_SHARE_OF_CONTROL

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def verify_merged(
    backbone: Backbone, model: Any, merged: Path, examples: Sequence[Example]
) -> Verification:
    """Reload the merged model from disk and compare.

    Args:
        backbone: of the adapter.
        model: the backbone with the adapter attached.
        merged: directory of the merged model.
        examples: held-out; compared where they have labels.

    Raises:
        MergeError: if there is no position to compare at.
    """
    if not any(example.supervised for example in examples):
        raise MergeError("no held-out tokens to compare the merged model on; add data.validation")
    model.eval()
    measured = log_probabilities(model, examples)
    with switched_off(model):
        control = log_probabilities(model, examples)
    shipped = log_probabilities(reload(merged, backbone), examples)
    return compare(measured, shipped, control)


def reload(merged: Path, backbone: Backbone) -> Any:
    """The merged model from disk, computing in what its backbone computes in.

    Raises:
        MergeError: if it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            merged, dtype=backbone.model.dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise MergeError(f"{merged}: cannot be loaded again: {error}") from error
    return model.to(backbone.model.device).eval()


@torch.inference_mode()
def log_probabilities(model: Any, examples: Sequence[Example]) -> torch.Tensor:
    """Next-token distributions where the examples have labels, at most `MOST_POSITIONS` of them.

    Returns:
        (positions, vocabulary) float32.
    """
    device = next(model.parameters()).device
    kept: list[torch.Tensor] = []
    left = MOST_POSITIONS
    for example in examples:
        predicted = [n for n, label in enumerate(example.labels[1:]) if label != IGNORED][:left]
        left -= len(predicted)
        if predicted:
            logits = model(
                input_ids=torch.tensor([example.input_ids], device=device),
                logits_to_keep=torch.tensor(predicted, device=device),
                use_cache=False,
            ).logits
            kept.append(logits[0].float().log_softmax(dim=-1))
    return torch.cat(kept)


def compare(measured: torch.Tensor, shipped: torch.Tensor, control: torch.Tensor) -> Verification:
    """Judge log-probabilities, each (positions, vocabulary) float32."""
    kl = _kl(measured, shipped)
    control_kl = float(_kl(measured, control).mean())
    agreement = _agreement(measured, shipped)
    mean = float(kl.mean())
    if not math.isfinite(mean + control_kl):
        raise MergeError("the merged model's distributions are no numbers; its weights overflowed")
    return Verification(
        positions=len(measured),
        top1_agreement=agreement,
        mean_kl=mean,
        p99_kl=float(kl.quantile(0.99)),
        control_top1_agreement=_agreement(measured, control),
        control_mean_kl=control_kl,
        passed=agreement >= LEAST_AGREEMENT
        and mean <= max(MOST_SHARE_OF_CONTROL * control_kl, ROUNDING_KL),
    )


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p.exp() * (p - q)).sum(dim=-1).clamp(min=0)


def _agreement(p: torch.Tensor, q: torch.Tensor) -> float:
    return float((p.argmax(dim=-1) == q.argmax(dim=-1)).float().mean())
