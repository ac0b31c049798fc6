"""Base class of trainers built on a TRL trainer; training leaves the model unpatched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from lora_kit.training.checkpointed_trainer import CheckpointedTrainer, keep_float32_masters

if TYPE_CHECKING:
    from peft import PeftModel

# Name that TRL 1.16 gives to the copy of an attached adapter.
REFERENCE_ADAPTER = "ref"


@contextmanager
def local_metrics(accelerator: Accelerator) -> Iterator[None]:
    """Keep on this process the metrics that TRL gathers in a forward pass.

    Processes have passes of different sizes, and not equally many: gathering would mix the metrics
    of different passes, or wait forever. The trainer gathers them at the end of the step.
    """
    methods = vars(accelerator)
    methods |= dict.fromkeys(("gather", "gather_for_metrics"), lambda value: value)
    try:
        yield
    finally:
        del methods["gather"], methods["gather_for_metrics"]


class TrlTrainer(CheckpointedTrainer):
    """Base class of the preference and reward trainers, which TRL implements.

    TRL's constructor changes adapters, and training wraps the model; both are undone here. The
    base's `forward`, which is patched as well, is restored by `run_training`.
    """

    @staticmethod
    @contextmanager
    def protecting(model: PeftModel) -> Iterator[None]:
        """Keep adapters in float32 and the base as the reference while TRL's constructor runs.

        TRL 1.16 treats an attached adapter as trained before and copies it as the reference policy.
        The copy doubles the adapter's memory and is saved as a second adapter. Without the copy,
        TRL computes reference log probabilities with the adapter disabled.
        """
        with keep_float32_masters(model):
            yield
        if REFERENCE_ADAPTER in model.peft_config:
            model.delete_adapter(REFERENCE_ADAPTER)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as TRL does, then remove the wrappers that TRL and Accelerate put on the model."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
