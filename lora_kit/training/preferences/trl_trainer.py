"""Base class of trainers built on a TRL trainer; training leaves the model unpatched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_kit.training.checkpointed_trainer import CheckpointedTrainer, keep_float32_masters
from lora_kit.training.preferences.answer_log_probs import restoring_forward
from lora_kit.training.preferences.reference import base_as_reference

if TYPE_CHECKING:
    from peft import PeftModel


class TrlTrainer(CheckpointedTrainer):
    """Base class of the preference and reward trainers, which TRL implements.

    TRL's constructor changes adapters, and training patches the model; both are undone here.
    """

    @contextmanager
    def protecting(self, model: PeftModel) -> Iterator[None]:
        """Keep adapters in float32 and the base as the reference while TRL's constructor runs."""
        self._forward_restored = restoring_forward(model)
        self._forward_restored.__enter__()
        with keep_float32_masters(model), base_as_reference(model):
            yield

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as TRL does, then remove the wrappers that TRL and Accelerate put on the model."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self._forward_restored.__exit__(None, None, None)
