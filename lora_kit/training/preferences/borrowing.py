"""A trainer of TRL that changes the model while it trains, and puts everything back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_kit.training.checkpointed_trainer import CheckpointedTrainer, float32_masters
from lora_kit.training.preferences.reference import base_as_reference
from lora_kit.training.preferences.scored_forward import forward_put_back

if TYPE_CHECKING:
    from peft import PeftModel


class BorrowingTrainer(CheckpointedTrainer):
    """What TRL's trainers of preferences and of rewards have in common here."""

    @contextmanager
    def borrowing(self, model: PeftModel) -> Iterator[None]:
        """While TRL's constructor runs: adapters stay as they are, the base is the reference."""
        self._undone = forward_put_back(model)
        self._undone.__enter__()
        with float32_masters(model), base_as_reference(model):
            yield

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL does, and leave the model without what TRL and Accelerate put around it."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self._undone.__exit__(None, None, None)
