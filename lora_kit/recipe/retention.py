"""The recipe's `retention` section: methods against forgetting, each independent of the others."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lora_kit.recipe.section import Count, LicenseName, NotNegative, Positive, Section


class TextsSpec(Section):
    """Texts that represent what the base knows."""

    source: str = "python-reference"
    """As in `data.train`; every token of a row is used, prompt and answer."""
    split: str = "train"
    """As in `data.train`. Texts that contain items of an evaluation suite are refused."""
    length: Annotated[Count, Field(ge=2)] = 128
    """Tokens of each text, from its beginning."""
    license: LicenseName | None = None
    """As in `data.train`."""


class KlSpec(TextsSpec):
    """Penalty for diverging from the base on texts of another kind."""

    weight: Positive = 1.0
    """KL penalty weight, in nats of loss per nat of divergence."""
    rows: Count = 2
    """Texts of a step over all processes."""


class NonTargetKlSpec(Section):
    """Penalty for reordering the tokens that a training row does not contain."""

    weight: Positive = 1.0
    """KL penalty weight, in nats of loss per nat of divergence."""


class EntropyWeightingSpec(Section):
    """Weights of the supervised tokens that grow with the model's own uncertainty."""

    top_k: Annotated[Count, Field(ge=2)] = 20
    """Most likely tokens over which the entropy is computed; the weight is the entropy over its
    maximum, the logarithm of `top_k`."""


class TokenMaskingSpec(Section):
    """Removal of labels from tokens that the base finds improbable."""

    max_perplexity: Annotated[Positive, Field(gt=1)] = 2.5
    """Supervised tokens with a higher perplexity under the base get no label. 2.5 keeps tokens with
    a probability of at least 0.4."""


class SelfDistillationSpec(Section):
    """Answers that the base rewrites, trained on in place of the rows' own."""

    similarity: Annotated[NotNegative, Field(le=100)] = 50.0
    """Smallest chrF (0 to 100) between the rewritten and the row's answer. Below it, or where the
    numbers differ, the row's own answer is used."""


class EarlyStoppingSpec(TextsSpec):
    """End of training when the loss on texts of another kind may have risen too far."""

    margin: Positive = 0.05
    """Largest tolerated rise of the texts' loss, in nats per token."""
    steps: Count = 20
    """Optimizer steps between two measurements."""
    rows: Annotated[Count, Field(ge=8)] = 32
    """Texts that are measured."""


class EwcSpec(TextsSpec):
    """Penalty for moving weights that the base's texts depend on."""

    weight: Positive = 1.0
    """EWC penalty weight, in nats of loss per nat of estimated divergence."""
    rows: Count = 32
    """Texts from which the importance of the weights is estimated before training."""


class CordaSpec(TextsSpec):
    """Initialisation of LoRA along directions that the base's texts use least."""

    rows: Count = 64
    """Texts from which the covariance of each layer's inputs is computed before training."""


class RetentionSpec(Section):
    """Methods against forgetting; replay, which is data, is under `data.replay`."""

    kl: KlSpec | None = None
    """Kullback-Leibler penalty against the base, with the adapter disabled."""
    non_target_kl: NonTargetKlSpec | None = None
    """Kullback-Leibler penalty against the base on the training rows, each target token left out
    of both distributions (Xu et al. 2026, arXiv:2605.29498): the target may become likelier, the
    order of all other tokens shall stay."""
    entropy_weighting: EntropyWeightingSpec | None = None
    """Entropy-adaptive fine-tuning (Diao et al. 2026, arXiv:2601.02151): tokens at which the model
    is sure of another answer are hardly learned."""
    token_masking: TokenMaskingSpec | None = None
    """Selective token masking."""
    self_distillation: SelfDistillationSpec | None = None
    """Self-distillation (Yang et al. 2024, arXiv:2402.13669)."""
    ewc: EwcSpec | None = None
    """Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796), for LoRA."""
    corda: CordaSpec | None = None
    """CorDA's knowledge-preserving mode (Yang et al. 2024, arXiv:2406.05223); needs
    `adapter.options: {init_lora_weights: corda}`."""
    early_stopping: EarlyStoppingSpec | None = None
    """Early stopping by the loss on texts of another kind."""

    @property
    def requested(self) -> dict[str, Section]:
        """Methods that the recipe asks for, by name."""
        return {name: one for name in type(self).model_fields if (one := getattr(self, name))}
