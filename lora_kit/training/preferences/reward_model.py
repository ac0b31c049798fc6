"""A reward model from pairs, by TRL's RewardTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from trl import RewardTrainer

from lora_kit.data.units import Unit
from lora_kit.modeling.features import Features
from lora_kit.training.preferences.trainers import UnitTrainer
from lora_kit.training.preferences.unit_batches import Batch, both_sides

if TYPE_CHECKING:
    from peft import PeftModel


class PairedRewardTrainer(UnitTrainer, RewardTrainer):
    """A head's reward of the chosen answer above that of the rejected one.

    -log sigmoid(r_chosen - r_rejected), the model of Bradley and Terry (Ouyang et al. 2022,
    arXiv:2203.02155, equation 1), averaged over the pairs of a step. What is said of a step:
    `accuracy`, the share of its pairs in the right order, `margin` and `mean_reward`, in log-odds.
    """

    batch_of = staticmethod(both_sides)
    figures = ("accuracy", "margin", "mean_reward")

    def __init__(
        self, *args: Any, units: Sequence[Unit], features: Features | None = None, **kwargs: Any
    ):
        """Take what `UnitTrainer` takes, and features.

        Args:
            args: of `UnitTrainer`.
            units: that are trained on.
            features: of all their examples, in their order, where the head alone is trained.
            kwargs: of `UnitTrainer`.
        """
        super().__init__(*args, units=units, **kwargs)
        self._features = features
        # Equal pairs are told apart by where they stand.
        self._places = {id(unit): number for number, unit in enumerate(units)}

    def _prepare_forward(self, model: PeftModel) -> None:
        """The model's own: no token of an answer is predicted."""

    def _batch(self, group: Sequence[Unit]) -> Batch:
        batch = super()._batch(group)
        if self._features is None:
            return batch
        pairs = [self._places[id(unit)] for unit in group]
        sides = [2 * pair for pair in pairs] + [2 * pair + 1 for pair in pairs]
        chosen = self._features.values[torch.tensor(sides)]
        return {"features": chosen, "attention_mask": batch["attention_mask"]}

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        """TRL's, of the whole model or of the head on its features."""
        asked = model if self._features is None else self._head_alone
        return super().compute_loss(asked, inputs, return_outputs, *args, **kwargs)

    def _head_alone(self, features: torch.Tensor, **_: Any) -> SimpleNamespace:
        """`logits` (2 * pairs, 1)."""
        assert self._features is not None
        return SimpleNamespace(logits=self._features.head(features))
