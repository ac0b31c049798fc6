"""Reward models from preference pairs, through TRL's RewardTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from trl import RewardTrainer

from lora_kit.data.units import Unit
from lora_kit.modeling.features import Features
from lora_kit.training.preferences.trainers import PreferenceTrainer
from lora_kit.training.preferences.unit_batches import PreferenceBatch, UnitPass, reward_batch

if TYPE_CHECKING:
    from peft import PeftModel


class RewardModelTrainer(PreferenceTrainer, RewardTrainer):
    """Trainer of a reward head, with the loss of the Bradley-Terry model.

    The loss is -log sigmoid(r_chosen - r_rejected) (Ouyang et al. 2022, arXiv:2203.02155,
    equation 1), averaged over the pairs of a step. Logged per step: `accuracy`, the share of its
    pairs in the right order, `margin` and `mean_reward`, in log-odds.
    """

    batch_of = staticmethod(reward_batch)
    logged_metrics = ("accuracy", "margin", "mean_reward")

    def __init__(
        self, *args: Any, units: Sequence[Unit], features: Features | None = None, **kwargs: Any
    ):
        """Build the trainer from the arguments of `PreferenceTrainer`, and features.

        Args:
            args: arguments of `PreferenceTrainer`.
            units: pairs to train on.
            features: features of all examples of the units, in order, if only the head is trained.
            kwargs: keyword arguments of `PreferenceTrainer`.
        """
        super().__init__(*args, units=units, **kwargs)
        self._features = features
        # By identity: equal pairs differ in their index only.
        self._indices = {id(unit): index for index, unit in enumerate(units)}

    def _prepare_forward(self, model: PeftModel) -> None:
        """Leave the model's forward as it is: a reward model predicts no tokens."""

    def _batch(self, one: UnitPass) -> PreferenceBatch:
        batch = super()._batch(one)
        if self._features is None:
            return batch
        pairs = [self._indices[id(unit)] for unit in one.units]
        sides = [2 * pair for pair in pairs] + [2 * pair + 1 for pair in pairs]
        values = self._features.values[torch.tensor(sides)]
        return {"features": values, "attention_mask": batch["attention_mask"]}

    def compute_loss(
        self,
        model: Any,
        inputs: PreferenceBatch,
        return_outputs: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Compute TRL's loss of the full model, or of the head on precomputed features."""
        scored = model if self._features is None else self._score_features
        return super().compute_loss(scored, inputs, return_outputs, *args, **kwargs)

    def _score_features(self, features: torch.Tensor, **_: Any) -> SimpleNamespace:
        """Return the head's `logits`, (2 * pairs, 1)."""
        assert self._features is not None
        return SimpleNamespace(logits=self._features.head(features))
