"""Early stopping on retention texts: training ends once their loss may have risen too far."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_kit.backbone.load import Backbone
from lora_kit.data.supervision import Example
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.recipe.retention import EarlyStoppingSpec
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.processes import any_process
from lora_kit.statistics.clusters import clustered_sample, robust_limits
from lora_kit.training.losses import nll_per_example
from lora_kit.training.trained_weights import Tensors, restore_weights, trained_weights

if TYPE_CHECKING:
    from peft import PeftModel

# A two-sided 90% interval's upper limit is a one-sided 95% bound.
CONFIDENCE = 0.90


def pessimistic_rise(
    before: Sequence[float], now: Sequence[float], clusters: Sequence[str]
) -> float:
    """Compute the one-sided 95% upper bound of the mean rise of paired losses, as evaluation does.

    The bound is not corrected for repeated measurements, so one of many may exceed the margin by
    chance: training then ends too early rather than too late.

    Args:
        before: loss of each text under the base, in nats per token.
        now: loss of each text under the adapter, in nats per token.
        clusters: cluster of each text; texts of one cluster are not independent.

    Returns:
        Bound in nats per token; infinite with a single cluster, or if a loss is not finite.
    """
    rises = np.array(now, np.float64) - np.array(before, np.float64)
    if not np.isfinite(rises).all():
        return math.inf
    return robust_limits(clustered_sample(rises, clusters), CONFIDENCE)[1]


class RetentionEarlyStopping(TrainerCallback):
    """Callback that ends training when the loss of retention texts may have risen past the margin.

    The adapter kept is that of the last measurement within the margin.

    Attributes:
        exceeded: true if the margin was exceeded, which ended training.
        kept: trained weights of the last measurement within the margin.
        kept_step: step of the `kept` weights; 0 before the first measurement within the margin.
    """

    def __init__(
        self,
        model: PeftModel,
        backbone: Backbone,
        examples: Sequence[Example],
        spec: EarlyStoppingSpec,
        record: Callable[[dict[str, float]], None],
        max_tokens_per_batch: int,
    ):
        """Store the texts and the margin; the base is measured when training begins.

        Args:
            model: the model with its adapter, not wrapped for several processes.
            backbone: the frozen model.
            examples: retention texts, every token labelled.
            spec: margin, and steps between two measurements.
            record: function that logs a step's metrics.
            max_tokens_per_batch: largest number of tokens per forward pass, padding included.
        """
        self._model = model
        self._backbone = backbone
        self._examples = tuple(examples)
        self._clusters = [one.cluster or one.origin for one in self._examples]
        self._spec = spec
        self._record = record
        self._batch_tokens = max_tokens_per_batch
        self._base: list[float] = []
        self.kept: Tensors = {}
        self.exceeded = False
        self.kept_step = 0

    def on_train_begin(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Measure the base, unless a checkpoint restored its losses.

        Raises:
            TrainingError: if the base has a loss that is not finite, or the adapter exceeds the
                margin before the first step.
        """
        if self._base:
            return
        with adapter_disabled(self._model):
            self._base = self._losses()
        if infinite := sum(not math.isfinite(loss) for loss in self._base):
            raise TrainingError(
                f"retention.early_stopping.source: {infinite} of {len(self._base)} texts have a "
                f"loss that is not finite with the base (got {self._spec.source}). Fix: set "
                "backbone.dtype: float32, or name other texts"
            )
        self._measure(state, control)
        if self.exceeded:
            raise TrainingError(
                "retention.early_stopping.margin: the adapter exceeds the margin before step 1, "
                f"since its method does not start at the base (got {self._spec.margin}). Fix: "
                "raise the margin"
            )

    def on_step_end(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Measure the texts every `steps` steps, and at the last step."""
        if state.global_step % self._spec.steps == 0 or state.global_step == state.max_steps:
            self._measure(state, control)

    def _measure(self, state: TrainerState, control: TrainerControl) -> None:
        losses = self._losses()
        bound = pessimistic_rise(self._base, losses, self._clusters)
        mean = sum(losses) / len(losses)
        if state.global_step:
            self._record(
                {"step": state.global_step, "retention_loss": mean, "retention_bound": bound}
            )
        # All processes must agree: another device may round the bound to the margin's other side.
        self.exceeded = any_process(bound > self._spec.margin)
        if not self.exceeded:
            self.kept, self.kept_step = trained_weights(self._model), state.global_step
            return
        control.should_training_stop = True
        say(
            f"step {state.global_step}: training stops, since the loss of {self._spec.source} may "
            f"have risen by {bound:.3f} nats per token, more than retention.early_stopping.margin "
            f"{self._spec.margin}; the adapter of step {self.kept_step} is kept"
        )

    def measure_at_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Measure the last weights if no measurement was due: patience may end training early."""
        if not self.exceeded and self.kept_step != state.global_step:
            self._measure(state, control)

    def restore_kept(self) -> None:
        """Restore the last weights within the margin.

        Raises:
            TrainingError: if no measurement was within the margin.
        """
        if not self.kept_step:
            raise TrainingError(
                "retention.early_stopping: the first measurement exceeds the margin, so no adapter "
                f"can be kept (got margin {self._spec.margin}). Fix: lower "
                "training.learning_rate or retention.early_stopping.steps, or raise the margin"
            )
        restore_weights(self._model, self.kept)

    def state(self) -> dict[str, Any]:
        """Return the state as JSON, without the weights."""
        return {"base": self._base, "exceeded": self.exceeded, "kept_step": self.kept_step}

    def restore(self, state: dict[str, Any], kept: Tensors) -> None:
        """Restore the state and the kept weights from a checkpoint."""
        self._base, self.kept = state["base"], kept
        self.exceeded, self.kept_step = state["exceeded"], state["kept_step"]

    def _losses(self) -> list[float]:
        """Return the mean loss of each text, in nats per token."""
        of_each = nll_per_example(
            self._model, self._backbone, self._examples, self._batch_tokens, "the retention texts"
        )
        return [float(nll.mean()) for nll in of_each]
