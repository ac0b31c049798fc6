"""The recipe's `preference`, `reward` and `grpo` sections: what an objective goes by."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from lora_kit.schema import Count, Fraction, NotNegative, Positive, Section

Objective = Literal["sft", "text", "dpo", "kto", "orpo", "reward", "grpo", "classification"]
# Learn from pairs of a chosen and a rejected answer.
PAIRED: tuple[Objective, ...] = ("dpo", "orpo", "reward")
# Go by the section `preference`: a language model learns from answers that were judged before.
PREFERENCE: tuple[Objective, ...] = ("dpo", "orpo", "kto")
# Train a head in the place of the output head, so that there is no language model to merge.
HEADED: tuple[Objective, ...] = ("classification", "reward")
# Compare what is trained with a reference policy: the base, which is the adapter switched off.
REFERENCED: tuple[Objective, ...] = ("dpo", "kto", "grpo")


class PreferenceSpec(Section):
    """How pairs (dpo, orpo) or answers with a label (kto) are learned from."""

    beta: Positive = 0.1
    """dpo and kto: how closely the reference policy, which is the base, is kept to; the implicit
    reward is `beta` times the log ratio to it. orpo: weight of the odds ratio beside the
    cross-entropy of the chosen answer, nats per token."""
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """dpo: `sigmoid` (Rafailov et al. 2023, arXiv:2305.18290), `hinge` (Zhao et al. 2023,
    arXiv:2305.10425) or `ipo` (Azar et al. 2023, arXiv:2310.12036)."""
    label_smoothing: Fraction = Field(default=0.0, lt=0.5)
    """dpo with sigmoid: share of the pairs that may be labelled the wrong way round; the loss is
    then the one that is right on average over such labels (Chowdhury et al. 2024,
    arXiv:2403.00409, equation 12)."""
    desirable_weight: Positive = 1.0
    """kto: weight of the good answers."""
    undesirable_weight: Positive = 1.0
    """kto: weight of the bad answers."""


class RewardSpec(Section):
    """How a reward model is learned from pairs.

    The loss is that of Bradley and Terry, -log sigmoid(r_chosen - r_rejected) (Ouyang et al. 2022,
    arXiv:2203.02155, equation 1).
    """

    centering: NotNegative = 0.0
    """Weight of (r_chosen + r_rejected)^2 beside it, which holds the rewards around 0; the loss of
    pairs alone leaves open where they lie (Eisenstein et al. 2023, arXiv:2312.09244, equation 2).
    Usual: 0.01."""


class GrpoSpec(Section):
    """How the model learns from rewards of what it says (Shao et al. 2024, arXiv:2402.03300)."""

    rewards: list[str] = Field(default=["exact_match"], min_length=1)
    """Metrics of an answer against the row's completion, as a `generation` task takes them: bundled
    (`exact_match`, `chrf`) or the path of an `evaluate` module of yours; `run:PATH`: what the
    reward model of a run directory gives, in log-odds, loaded beside the policy. The reward is
    their sum."""
    answer: Literal["whole", "first_line"] = "whole"
    """What of the output the metric sees, as in a `generation` task."""
    generations: Count = Field(default=8, ge=2)
    """Answers to each prompt, which are compared with one another."""
    max_new_tokens: Count = 48
    """Tokens of an answer, at most."""
    temperature: Positive = 1.0
    """Of the sampling."""
    beta: NotNegative = 0.0
    """Weight of the divergence from the reference policy, which is the base; 0: without."""
    loss: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = "dapo"
    """How tokens are averaged: over the step (`dapo`), over each forward pass (`bnpo`), in each
    answer first (`grpo`), by a constant (`dr_grpo`)."""

    @field_validator("rewards")
    @classmethod
    def _not_fetched(cls, rewards: list[str]) -> list[str]:
        if len(set(rewards)) < len(rewards):
            raise ValueError("no reward twice")
        if "run:" in rewards:
            raise ValueError("run: names a run directory of a reward model, run:PATH")
        if any(name.startswith("hub:") for name in rewards):
            raise ValueError(
                "a reward is computed on this machine, from code that is on it: a bundled metric, "
                "the path of a module, or run:PATH"
            )
        return rewards
