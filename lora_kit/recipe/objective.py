"""The recipe's `preference`, `reward`, `grpo` and `sdft` sections: options of an objective."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lora_kit.recipe.data import RowFormat
from lora_kit.recipe.section import (
    Count,
    Distinct,
    Fraction,
    NotNegative,
    Positive,
    Section,
    Whole,
)

Objective = Literal[
    "sft",
    "text",
    "dpo",
    "kto",
    "orpo",
    "reward",
    "grpo",
    "sdft",
    "classification",
    "regression",
    "multi-label",
    "token-classification",
    "embedding",
    "mlm",
]
# Objectives that replace or remove the output head of a decoder, or need an encoder.
HeadObjective = Literal[
    "classification",
    "regression",
    "multi-label",
    "token-classification",
    "reward",
    "embedding",
    "mlm",
]
# Those of them that learn a target of each text: a class, numbers, labels, or tags of its words.
TEXT_HEADS: tuple[HeadObjective, ...] = (
    "classification",
    "regression",
    "multi-label",
    "token-classification",
)
# Those of them with one target for a whole text.
WHOLE_TEXT_HEADS: tuple[HeadObjective, ...] = ("classification", "regression", "multi-label")
# Those of them whose head is new, so that the base has none to compare with.
NEW_HEADS: tuple[HeadObjective, ...] = (*TEXT_HEADS, "reward")
HEADED: tuple[HeadObjective, ...] = (*NEW_HEADS, "embedding", "mlm")
# Those of them whose adapter is merged into its backbone.
MERGED_HEADS: tuple[HeadObjective, ...] = ("mlm",)
# Objectives that learn the next token, and all that learn labels of rows.
LANGUAGE_MODELING: tuple[Objective, ...] = ("sft", "text")
SUPERVISED: tuple[Objective, ...] = (*LANGUAGE_MODELING, *TEXT_HEADS, "mlm")
# Objectives whose rows are texts, without prompts and answers.
OF_TEXTS: tuple[Objective, ...] = ("text", "mlm")
# Objectives that train on pairs of a chosen and a rejected answer.
PAIRED: tuple[Objective, ...] = ("dpo", "orpo", "reward")
# Objectives of which a row gives two texts to the model, or three.
OF_SEVERAL_TEXTS: tuple[Objective, ...] = (*PAIRED, "embedding")
# Formats that an objective needs its rows in; the others read rows of any but `preference`.
FORMATS_OF: dict[Objective, tuple[RowFormat, ...]] = {
    **dict.fromkeys(PAIRED, ("preference",)),
    "regression": ("text-score", "text-scores"),
    "multi-label": ("text-labels",),
    "token-classification": ("tokens-tags",),
    # A triplet has the columns of a pair, too.
    "embedding": ("triplet", "pair"),
}
# Objectives with the section `preference`, which train a language model on judged answers.
PREFERENCE: tuple[Objective, ...] = ("dpo", "orpo", "kto")
# Objectives with a reference policy, which is the base with the adapter disabled.
REFERENCED: tuple[Objective, ...] = ("dpo", "kto", "grpo")
# Objectives that train on answers which the model generates during training.
ON_POLICY: tuple[Objective, ...] = ("grpo", "sdft")
# Section of each objective that has one of its own.
SECTION_OF: dict[Objective, str] = {
    "reward": "reward",
    "grpo": "grpo",
    "sdft": "sdft",
    "classification": "classification",
    "regression": "regression",
    "multi-label": "multi_label",
    "token-classification": "token_classification",
    "embedding": "embedding",
    "mlm": "mlm",
}
# Parts of `sdft.teacher_prompt` that are filled in for each row.
PROMPT, DEMONSTRATION = "{prompt}", "{demonstration}"


class PreferenceSpec(Section):
    """Learning from pairs (dpo, orpo) or labelled answers (kto)."""

    beta: Positive = 0.1
    """dpo and kto: strength of the penalty against the reference policy; the implicit reward is
    `beta` times the log ratio to it. orpo: weight of the odds ratio beside the cross-entropy of the
    chosen answer, in nats per token."""
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """dpo: `sigmoid` (Rafailov et al. 2023, arXiv:2305.18290), `hinge` (Zhao et al. 2023,
    arXiv:2305.10425) or `ipo` (Azar et al. 2023, arXiv:2310.12036)."""
    label_smoothing: Annotated[Fraction, Field(lt=0.5)] = 0.0
    """dpo with loss sigmoid: assumed share of pairs that are labelled the wrong way round; the loss
    is then unbiased under such labels (Chowdhury et al. 2024, arXiv:2403.00409, equation 12)."""
    desirable_weight: Positive = 1.0
    """kto: weight of the good answers."""
    undesirable_weight: Positive = 1.0
    """kto: weight of the bad answers."""


class RewardSpec(Section):
    """Learning a reward model from pairs.

    The loss is that of Bradley and Terry, -log sigmoid(r_chosen - r_rejected) (Ouyang et al. 2022,
    arXiv:2203.02155, equation 1).
    """

    centering: NotNegative = 0.0
    """Weight of the penalty (r_chosen + r_rejected)^2, which keeps rewards around 0 (Eisenstein et
    al. 2023, arXiv:2312.09244, equation 2); usually 0.01."""


class GrpoSpec(Section):
    """Learning from rewards of generated answers (Shao et al. 2024, arXiv:2402.03300)."""

    rewards: Distinct[str] = Field(default=["exact_match"], min_length=1)
    """Metrics of an answer against the row's completion, as in a `generation` task: bundled
    (`exact_match`, `chrf`) or the path of an `evaluate` module; `run:PATH`: the reward model of a
    run directory, in log-odds, loaded beside the policy. The reward is their sum."""
    scored_text: Literal["whole", "first_line"] = "whole"
    """Part of the answer that the metrics score, as in a `generation` task."""
    num_generations: Annotated[Count, Field(ge=2)] = 8
    """Answers to each prompt, which are compared with one another."""
    max_new_tokens: Count = 48
    """Largest number of tokens of an answer."""
    temperature: Positive = 1.0
    """Sampling temperature."""
    beta: NotNegative = 0.0
    """Weight of the divergence from the reference policy; 0: none."""
    loss: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = "dapo"
    """Average over tokens: of the step (`dapo`), of each forward pass (`bnpo`), of each answer
    (`grpo`), or divided by a constant (`dr_grpo`)."""

    @field_validator("rewards")
    @classmethod
    def _require_local_code(cls, rewards: list[str]) -> list[str]:
        if "run:" in rewards:
            raise ValueError("run: names no run directory. Fix: write run:PATH")
        if any(name.startswith("hub:") for name in rewards):
            raise ValueError(
                "rewards run code of this machine only. Fix: use a bundled metric, the path of a "
                "module, or run:PATH"
            )
        return rewards


class SdftSpec(Section):
    """On-policy self-distillation (Shenfeld et al. 2026, arXiv:2601.19897).

    The student is the model with its adapter and answers the prompt. The teacher is the base, with
    the adapter disabled, and sees the row's completion in its prompt, as a demonstration. The
    student learns the teacher's distribution of each token of its own answer.
    """

    max_new_tokens: Count = 256
    """Largest number of tokens of the student's answer."""
    temperature: Positive = 1.0
    """Sampling temperature, and divisor of the logits that are compared."""
    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon"] = "reverse_kl"
    """Loss of a token. `reverse_kl`: KL(student || teacher), that of the paper; `forward_kl`:
    KL(teacher || student); `jensen_shannon`: the mean of both divergences from the mean of the two
    distributions."""
    top_k: Count | None = 100
    """Tokens that are compared at each position: those that the student finds most likely, and all
    others as one. Null: the whole vocabulary, which needs more memory."""
    skipped_tokens: Whole = 0
    """First tokens of each answer that are left out of the loss; for teachers that begin with words
    about the demonstration."""
    teacher_prompt: str = (
        f"{PROMPT}\n\nHere is an example of a good answer:\n\n{DEMONSTRATION}\n\n"
        "Now write a good answer of your own."
    )
    """Text of the user's last turn as the teacher sees it, with `{prompt}` for the turn itself and
    `{demonstration}` for the row's completion."""

    @field_validator("teacher_prompt")
    @classmethod
    def _require_both_parts(cls, text: str) -> str:
        for part in (PROMPT, DEMONSTRATION):
            if text.count(part) != 1:
                raise ValueError(
                    f"has to contain {part} once, and contains it {text.count(part)} times. Fix: "
                    "write both {prompt} and {demonstration} into it"
                )
        return text

    @model_validator(mode="after")
    def _require_tokens_to_learn(self) -> SdftSpec:
        if self.skipped_tokens >= self.max_new_tokens:
            raise ValueError(
                f"`skipped_tokens` {self.skipped_tokens} leaves out all of the `max_new_tokens` "
                f"{self.max_new_tokens}. Fix: lower it"
            )
        return self
