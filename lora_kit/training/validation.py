"""Validation loss before, during and after training, and early stopping on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_kit.backbone.load import Backbone
from lora_kit.data.batches import split_micro_batches
from lora_kit.data.prepared import PreparedData
from lora_kit.data.supervision import Example
from lora_kit.modeling.modes import eval_mode
from lora_kit.recipe.sweep import PARTS
from lora_kit.recipe.training import TrainingSpec
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.processes import process_state
from lora_kit.training.losses import batch_nll
from lora_kit.training.sharded import is_sharded, reshard
from lora_kit.training.trained_weights import Tensors, trained_weights

Batch = TypeVar("Batch")
# From the number of a part and the validation loss at its end to true if training is to end there.
EndsEarly = Callable[[int, float], bool]


def validation_loss(
    model: torch.nn.Module,
    backbone: Backbone,
    validation: PreparedData | None,
    max_tokens_per_batch: int,
) -> float | None:
    """Return the mean loss of held-out rows in nats per supervised token; `None` without rows.

    Args:
        model: the backbone with its adapter.
        backbone: backbone of the model.
        validation: held-out rows.
        max_tokens_per_batch: maximum tokens of a forward pass, padding included.

    Raises:
        TrainingError: if a forward pass does not fit into memory.
    """
    if validation is None or not validation.examples:
        return None
    examples = validation.examples

    def sums_of(batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        nll, _ = batch_nll(model, backbone, batch, "the held-out rows")
        return nll.double().sum(), torch.tensor(nll.numel())

    batches = split_micro_batches(examples, len(examples), max_tokens_per_batch)
    return shared_mean(model, batches, sums_of)


def shared_mean(
    model: torch.nn.Module,
    batches: Sequence[Batch],
    sums_of: Callable[[Batch], tuple[torch.Tensor, torch.Tensor]],
) -> float:
    """Return the weighted mean of a loss over forward passes.

    The passes are shared between the processes, unless the model is sharded: then all processes
    run all passes.

    Args:
        model: model of the passes.
        batches: inputs of the passes, the same on all processes.
        sums_of: function that runs a pass and returns its summed losses and weights, two scalars.
    """
    state = process_state()
    if not is_sharded(model):
        batches = batches[state.process_index :: state.num_processes]
    # On the device, where adding does not wait for a pass.
    sums = torch.zeros(2, dtype=torch.float64, device=state.device)
    # Not inference mode: training uses the tensors that a sharded model allocates here.
    with eval_mode(model), torch.no_grad():
        for batch in batches:
            for place, one in enumerate(sums_of(batch)):
                sums[place] += one.double()
    reshard(model)
    total, weight = reduce(sums).tolist()
    return float(total / weight)


class Validation(TrainerCallback):
    """Callback that measures the validation loss and stops training when it no longer falls.

    Attributes:
        before: loss before step 1, in nats per token.
        losses: loss by step, in nats per token.
        best_weights: weights of the lowest loss, on the CPU; empty unless `keep_best` is set.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        measure: Callable[[], float | None],
        record: Callable[[dict[str, float]], None],
        measure_drift: Callable[[], float] | None = None,
        ends_early: EndsEarly | None = None,
    ):
        """Create the callback.

        Args:
            spec: `eval_steps`, `early_stopping_patience` and `keep_best`.
            measure: returns the current validation loss.
            record: appends an entry to `metrics.jsonl`.
            measure_drift: returns the current drift of held-out prompts, recorded with the loss.
            ends_early: function that ends the training by its validation loss.
        """
        self._spec = spec
        self._measure_drift = measure_drift
        self._ends_early = ends_early
        self._measure = measure
        self._record = record
        self.before: float | None = None
        self.losses: dict[int, float] = {}
        self.best_weights: Tensors = {}

    def on_train_begin(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Measure before step 1 if that was not done earlier.

        A sharded model is on its device only from here on.
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
        """Measure the loss every `eval_steps` steps, at the end of each part, and after the last.

        Raises:
            TrainingError: if the loss is infinite or NaN.
        """
        every, part = self._spec.eval_steps, self._part_ended(state)
        last = state.global_step == state.max_steps
        is_wished = every is not None and (last or state.global_step % every == 0)
        if model is None or not (is_wished or part):
            return
        loss = self._measure()
        if loss is None:
            return
        if not math.isfinite(loss):
            raise TrainingError(
                f"step {state.global_step}: the validation loss is not finite (got {loss}). Fix: "
                "lower training.learning_rate or training.max_grad_norm"
            )
        if is_wished:
            self.losses[state.global_step] = loss
        drift = {"drift": self._measure_drift()} if self._measure_drift else {}
        self._record({"step": state.global_step, "validation_loss": loss, **drift})
        if is_wished and self.best_step == state.global_step and self._spec.keep_best:
            self.best_weights = trained_weights(model)
        if self._ends_early and part and self._ends_early(part, loss):
            control.should_training_stop = True
        if self.exhausted and not last:
            say(
                f"step {state.global_step}: stopped early: the validation loss has not fallen for "
                f"{self._spec.early_stopping_patience} measurements since step {self.best_step}"
            )
            control.should_training_stop = True

    def _part_ended(self, state: TrainerState) -> int:
        """Return the number of the part that ends with this step, from 1; 0 for none."""
        if self._ends_early is None:
            return 0
        ends = [math.ceil(state.max_steps * part / PARTS) for part in range(1, PARTS)]
        # Of a training of few steps, several parts end with one.
        return max((n for n, end in enumerate(ends, 1) if end == state.global_step), default=0)

    @property
    def exhausted(self) -> bool:
        """True if the loss has not fallen for `early_stopping_patience` measurements."""
        if not self._spec.early_stopping_patience or not self.losses:
            return False
        return (
            sum(step > self.best_step for step in self.losses) >= self._spec.early_stopping_patience
        )

    @property
    def best_step(self) -> int:
        """First step with the lowest loss."""
        return min(self.losses, key=lambda step: (self.losses[step], step))

    def state(self) -> dict[str, Any]:
        """Return the state for JSON, without the weights."""
        losses = {str(step): loss for step, loss in self.losses.items()}
        return {"before": self.before, "losses": losses}

    def restore(self, state: dict[str, Any], best_weights: Tensors) -> None:
        """Restore the state of a checkpoint.

        Args:
            state: value of `state`.
            best_weights: weights of the lowest loss.
        """
        self.before = state["before"]
        self.losses = {int(step): loss for step, loss in state["losses"].items()}
        self.best_weights = best_weights
