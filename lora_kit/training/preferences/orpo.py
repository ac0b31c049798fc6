"""ORPO through TRL's ORPOTrainer, which TRL 1.16 lists as experimental."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from lora_kit.data.supervision import IGNORE_INDEX
from lora_kit.data.units import Unit
from lora_kit.training.preferences.trainers import REWARD_METRICS, PreferenceTrainer
from lora_kit.training.preferences.unit_batches import PreferenceBatch, orpo_batch

with warnings.catch_warnings():
    # TRL warns that the experimental interface may change; this package pins TRL's versions.
    warnings.simplefilter("ignore")
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

__all__ = ["ORPOConfig", "OrpoStepTrainer"]


class OrpoStepTrainer(PreferenceTrainer, ORPOTrainer):
    """Odds ratio preference optimization, without a reference (Hong et al. 2024, arXiv:2403.07691).

    TRL computes the cross-entropy of prompt and chosen answer, averaged over the tokens of a pass.
    The paper (equation 6) computes the answer's alone, and a step's gradient must not depend on the
    split into passes. The cross-entropy here is the mean over the tokens of the chosen answers of
    the step.
    """

    batch_of = staticmethod(orpo_batch)
    logged_metrics = (*REWARD_METRICS, "nll_loss", "log_odds_chosen")

    def __init__(self, *args: Any, **kwargs: Any):
        """Build the trainer from the arguments of `PreferenceTrainer`."""
        super().__init__(*args, **kwargs)
        # No load-balancing loss for experts is added, as in sft.
        self.aux_loss_enabled = False

    def _begin_step(self, units: Sequence[Unit]) -> None:
        lengths = [unit.examples[0].supervised for unit in units]
        self._mean_answer_tokens = float(torch.tensor(sum(lengths) / len(lengths)))

    def concatenated_forward(self, model: Any, batch: PreferenceBatch) -> Any:
        """Run TRL's forward pass and replace its cross-entropy with the step's, in nats per token.

        Passes are later weighted by their pairs, so the cross-entropy is scaled by the mean answer
        length of the step.
        """
        chosen, *others, _ = super().concatenated_forward(model, batch)
        # `chosen` is the mean over an answer's tokens; nothing predicts a row's first token.
        tokens = (batch["chosen_labels"][:, 1:] != IGNORE_INDEX).sum(dim=1)
        return chosen, *others, -(chosen * tokens).mean() / self._mean_answer_tokens

    @property
    def _logged(self) -> dict[str, list[float]]:
        metrics: dict[str, list[float]] = self._stored_metrics["train"]
        return metrics
