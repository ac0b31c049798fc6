"""ORPO, which TRL 1.16 keeps among its experiments."""

from __future__ import annotations

import warnings

from lora_kit.training.preferences.trainers import REWARDS, UnitTrainer
from lora_kit.training.preferences.unit_batches import odds

with warnings.catch_warnings():
    # That its interface may change; the versions that this package takes are pinned.
    warnings.simplefilter("ignore")
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

__all__ = ["ORPOConfig", "OddsTrainer"]


class OddsTrainer(UnitTrainer, ORPOTrainer):
    """Odds ratio preference optimization, without a reference (Hong et al. 2024, arXiv:2403.07691).

    Its cross-entropy is that of prompt and chosen answer, averaged over the tokens of a pass.
    """

    batch_of = staticmethod(odds)
    figures = (*REWARDS, "nll_loss", "log_odds_chosen")
