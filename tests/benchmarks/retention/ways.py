"""Ways to adapt and to keep: in what their recipes differ, and where their rates are searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

REFERENCE = {"source": "python-reference", "split": "train"}
KL = {**REFERENCE, "rows": 2, "length": 128}


@dataclass(frozen=True)
class Way:
    """Way to adapt a backbone.

    Attributes:
        changes: changes of the common recipe.
        rate: learning rate at which the search for the best one begins.
        scale: scale at which plain LoRA's adapter of the same rate is used instead of a training;
            `None` if the way is trained.
        intruders: factor to which the intruder dimensions of that adapter are kept instead.
        factor: multiple of plain LoRA's best rate that is taken instead of a search; `None` if the
            rate is searched.
        dtype: dtype of the backbone's weights and computation.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1e-3
    scale: float | None = None
    intruders: float | None = None
    factor: float | None = None
    dtype: str = "bfloat16"

    @property
    def changes_plain(self) -> bool:
        """Return true if plain LoRA's adapter is changed, and none is trained."""
        return self.scale is not None or self.intruders is not None

    @property
    def has_plain_rate(self) -> bool:
        """Return true if no rate of its own is searched."""
        return self.changes_plain or self.factor is not None


PLAIN = "lora"


def _retention(**methods: Any) -> Way:
    return Way({"retention": methods})


def _replay(fraction: float, source: Mapping[str, Any] = REFERENCE) -> dict[str, Any]:
    return {"replay": {**source, "fraction": fraction}}


# In the order in which they are measured. Copies of layers (full, last-2) are trained in float32
# alone, and CorDA changes the backbone's own weights, which bfloat16 would round.
WAYS: dict[str, Way] = {
    PLAIN: Way(),
    "rate / 2": Way(factor=1 / 2),
    "rate / 4": Way(factor=1 / 4),
    "rate / 8": Way(factor=1 / 8),
    "replay 5%": Way({"data": _replay(0.05)}),
    "kl 1": _retention(kl={**KL, "weight": 1.0}),
    "scale 0.75": Way(scale=0.75),
    "scale 0.5": Way(scale=0.5),
    "rate / 2, scale 0.75": Way(scale=0.75, factor=1 / 2),
    "intruders 0": Way(intruders=0.0),
    "non-target kl 1": _retention(non_target_kl={"weight": 1.0}),
    "entropy weights": _retention(entropy_weighting={}),
    "ewc 10": _retention(ewc={**REFERENCE, "weight": 10.0}),
    "replay 5%, kl 1": Way({"data": _replay(0.05), "retention": {"kl": {**KL, "weight": 1.0}}}),
    "non-target kl 10": _retention(non_target_kl={"weight": 10.0}),
    "kl 10": _retention(kl={**KL, "weight": 10.0}),
    "corda": Way(
        {
            "adapter": {"options": {"init_lora_weights": "corda"}},
            "retention": {"corda": {**REFERENCE, "length": 128}},
        },
        rate=2e-4,
        dtype="float32",
    ),
    "sdft": Way({"training": {"objective": "sdft"}, "sdft": {"max_new_tokens": 64}}),
    "full": Way({"adapter": {"method": "full"}}, rate=5e-5, dtype="float32"),
    "osf": Way({"adapter": {"method": "osf"}}, rate=1e-4),
    "self-replay 5%": Way({"data": _replay(0.05, {"source": "self"})}),
    "self-distillation": _retention(self_distillation={"similarity": 40.0}),
    "token masking": _retention(token_masking={"max_perplexity": 1000.0}),
    "early stopping": _retention(early_stopping={**REFERENCE, "steps": 4, "margin": 0.03}),
    "last-2": Way({"adapter": {"method": "last-2"}}, rate=2e-4, dtype="float32"),
}
