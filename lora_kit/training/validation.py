"""The loss of held-out rows: before, while and after training, and what is decided by it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_kit.backbone.load import Backbone
from lora_kit.data.batches import cut
from lora_kit.data.dataset import PreparedData
from lora_kit.modeling.modes import eval_mode
from lora_kit.recipe.training import TrainingSpec
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.processes import process_state
from lora_kit.training.losses import batch_nll
from lora_kit.training.sharded import is_sharded, shard_again
from lora_kit.training.trained_weights import Tensors, trained_weights


def validation_loss(
    model: torch.nn.Module,
    backbone: Backbone,
    validation: PreparedData | None,
    max_tokens_per_batch: int = 4096,
) -> float | None:
    """Mean loss of the held-out supervised tokens, nats per token; `None` without such data.

    Several processes share the forward passes, but where each pass takes all of them together.

    Args:
        model: the backbone with its adapter.
        backbone: of the model.
        validation: held-out rows.
        max_tokens_per_batch: most tokens of a forward pass, padding included.

    Raises:
        TrainingError: if a forward pass does not fit into memory.
    """
    if validation is None or not validation.examples:
        return None
    state = process_state()
    batches = cut(validation.examples, len(validation.examples), max_tokens_per_batch)
    if not is_sharded(model):
        batches = batches[state.process_index :: state.num_processes]
    found = torch.zeros(2, dtype=torch.float64)
    # Not in inference mode: what a sharded model gathers first is used again in the training.
    with eval_mode(model), torch.no_grad():
        for batch in batches:
            nll, _ = batch_nll(model, backbone, batch, "the held-out rows")
            found += torch.tensor([float(nll.double().sum()), nll.numel()], dtype=torch.float64)
    shard_again(model)
    total, count = reduce(found.to(state.device)).tolist()
    return float(total / count)


class Validation(TrainerCallback):
    """Measures the validation loss every so many steps; stops where it no longer falls.

    Attributes:
        before: the loss before step 1.
        losses: by step, nats per token.
        best_weights: those of the lowest loss, on the CPU; empty unless they are to be kept.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        measure: Callable[[], float | None],
        record: Callable[[dict[str, float]], None],
    ):
        """Plan.

        Args:
            spec: how often, how long without a lower loss, and whether the best is kept.
            measure: gives the loss now.
            record: takes a step's figures.
        """
        self._spec = spec
        self._measure = measure
        self._record = record
        self.before: float | None = None
        self.losses: dict[int, float] = {}
        self.best_weights: Tensors = {}

    def on_train_begin(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Measure before step 1, if that could not be done earlier.

        Only now a model that is divided lies where it is computed.
        """
        if state.global_step == 0 and self.before is None:
            self.before = self._measure()

    def on_step_end(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Measure if it is time.

        Raises:
            TrainingError: if the loss is infinite or no number.
        """
        every = self._spec.eval_steps
        last = state.global_step == state.max_steps
        if model is None or every is None or (state.global_step % every and not last):
            return
        loss = self._measure()
        if loss is None:
            return
        if not math.isfinite(loss):
            raise TrainingError(
                f"step {state.global_step}: the validation loss is {loss}; lower "
                "training.learning_rate or training.max_grad_norm"
            )
        self.losses[state.global_step] = loss
        self._record({"step": state.global_step, "validation_loss": loss})
        if self.best_step == state.global_step and self._spec.keep_best:
            self.best_weights = trained_weights(model)
        if self.exhausted and not last:
            say(
                f"step {state.global_step}: stopped, the validation loss has not fallen for "
                f"{self._spec.early_stopping_patience} measurements since step {self.best_step}"
            )
            control.should_training_stop = True

    @property
    def exhausted(self) -> bool:
        """Whether the loss has not fallen for `early_stopping_patience` measurements."""
        if not self._spec.early_stopping_patience or not self.losses:
            return False
        return (
            sum(step > self.best_step for step in self.losses) >= self._spec.early_stopping_patience
        )

    @property
    def best_step(self) -> int:
        """The first step of the lowest loss."""
        return min(self.losses, key=lambda step: (self.losses[step], step))

    def state(self) -> dict[str, Any]:
        """As JSON, without the weights."""
        losses = {str(step): loss for step, loss in self.losses.items()}
        return {"before": self.before, "losses": losses}

    def restore(self, state: dict[str, Any], best_weights: Tensors) -> None:
        """Go on from a checkpoint."""
        self.before = state["before"]
        self.losses = {int(step): loss for step, loss in state["losses"].items()}
        self.best_weights = best_weights
