"""ORPO, which TRL 1.16 keeps among its experiments."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from lora_kit.data.tokenization import IGNORED
from lora_kit.data.units import Unit
from lora_kit.training.preferences.trainers import REWARDS, UnitTrainer
from lora_kit.training.preferences.unit_batches import Batch, odds

with warnings.catch_warnings():
    # That its interface may change; the versions that this package takes are pinned.
    warnings.simplefilter("ignore")
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

__all__ = ["ORPOConfig", "OddsTrainer"]


class OddsTrainer(UnitTrainer, ORPOTrainer):
    """Odds ratio preference optimization, without a reference (Hong et al. 2024, arXiv:2403.07691).

    TRL's cross-entropy is that of prompt and chosen answer, averaged over the tokens of a pass; the
    paper's (equation 6) is that of the answer, and what a step learns is not to depend on how it is
    cut into passes. So here it is the mean over the tokens of the step's chosen answers.
    """

    batch_of = staticmethod(odds)
    figures = (*REWARDS, "nll_loss", "log_odds_chosen")

    def __init__(self, *args: Any, **kwargs: Any):
        """Take what `UnitTrainer` takes."""
        super().__init__(*args, **kwargs)
        # As in sft, the balance of experts is left as it is.
        self.aux_loss_enabled = False

    def _begin_step(self, units: Sequence[Unit]) -> None:
        answers = [unit.examples[0].supervised for unit in units]
        mean = torch.tensor(sum(answers) / len(answers), device=self.args.device)
        # Of several processes, over the tokens of all.
        self._answer = float(self.accelerator.reduce(mean, "mean"))

    def concatenated_forward(self, model: Any, batch: Batch) -> Any:
        """As TRL's, whose last part is the cross-entropy: a pass weighs by its pairs afterwards."""
        chosen, *others, _ = super().concatenated_forward(model, batch)
        # Of each answer its mean; the first token of a row is predicted by nothing.
        tokens = (batch["chosen_labels"][:, 1:] != IGNORED).sum(dim=1)
        return chosen, *others, -(chosen * tokens).mean() / self._answer

    @property
    def _said(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = self._stored_metrics["train"]
        return found
