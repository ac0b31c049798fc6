"""The retention budget: a probe every so many steps, and an end to the training past the margin."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_kit.backbone.load import Backbone
from lora_kit.data.tokenization import Example
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.recipe.retention import EarlyStoppingSpec
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.processes import any_process
from lora_kit.statistics.clusters import robust_limits, sample
from lora_kit.training.losses import nll_of_each
from lora_kit.training.trained_weights import Tensors, restore_weights, trained_weights

if TYPE_CHECKING:
    from peft import PeftModel

# Of an interval whose upper limit is the pessimistic bound: 95%, one-sided.
CONFIDENCE = 0.90


def pessimistic_rise(
    before: Sequence[float], now: Sequence[float], clusters: Sequence[str]
) -> float:
    """Upper bound of the mean rise of paired losses: the evaluation's, one-sided, 95%.

    It is looked at again and again, so that among many looks one may be above the margin by chance:
    a training ends too early rather than too late.

    Args:
        before: loss of each text under the base, nats per token.
        now: under the adapter.
        clusters: texts of one are not independent; infinite if there is one alone, or a loss is.
    """
    rises = np.array(now, np.float64) - np.array(before, np.float64)
    if not np.isfinite(rises).all():
        return math.inf
    return robust_limits(sample(rises, clusters), CONFIDENCE)[1]


class RetentionEarlyStopping(TrainerCallback):
    """Ends the training when the loss of some texts may have risen by more than the margin.

    What is kept then is what the last look found within it.

    Attributes:
        exceeded: whether it ended the training.
        kept: the weights that were within the margin when they were last looked at.
        kept_step: of those.
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
        """Plan.

        Args:
            model: with its adapter, not wrapped for several processes.
            backbone: of the model.
            examples: the texts, every token labelled.
            spec: the margin, and how often it is looked at.
            record: takes a step's figures.
            max_tokens_per_batch: most tokens of a forward pass, padding included.
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
        """Measure the base, unless a checkpoint knows of it.

        Raises:
            TrainingError: if a new adapter is beyond the margin already.
        """
        if self._base:
            return
        with adapter_disabled(self._model):
            self._base = self._losses()
        self._look(state, control)
        if self.exceeded:
            raise TrainingError(
                f"retention.early_stopping.margin: {self._spec.margin}: the adapter is beyond it before "
                "step 1, since its method does not begin at the base; raise it"
            )

    def on_step_end(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Look if it is time."""
        if state.global_step % self._spec.steps == 0 or state.global_step == state.max_steps:
            self._look(state, control)

    def _look(self, state: TrainerState, control: TrainerControl) -> None:
        losses = self._losses()
        bound = pessimistic_rise(self._base, losses, self._clusters)
        mean = sum(losses) / len(losses)
        if state.global_step:
            figures = {"step": state.global_step, "retention_loss": mean, "retention_bound": bound}
            self._record(figures)
        # Of all: another device may round the bound to the other side of the margin.
        self.exceeded = any_process(bound > self._spec.margin)
        if not self.exceeded:
            self.kept, self.kept_step = trained_weights(self._model), state.global_step
            return
        control.should_training_stop = True
        say(
            f"step {state.global_step}: stopped, the loss of {self._spec.source} may have risen by "
            f"{bound:.3f} nats per token, more than retention.early_stopping.margin {self._spec.margin}; "
            f"what is kept is the adapter of step {self.kept_step}"
        )

    def look_at_the_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Look at the last weights if no look was due: patience may end a training at any step."""
        if not self.exceeded and self.kept_step != state.global_step:
            self._look(state, control)

    def put_back(self) -> None:
        """Put the weights back that were within the margin.

        Raises:
            TrainingError: if none were.
        """
        if not self.kept_step:
            raise TrainingError(
                "retention.early_stopping: past the margin at the first look, so that nothing is left to "
                "keep. Lower training.learning_rate, or retention.early_stopping.steps, or raise the margin"
            )
        restore_weights(self._model, self.kept)

    def state(self) -> dict[str, Any]:
        """As JSON, without the weights."""
        return {"base": self._base, "exceeded": self.exceeded, "kept_step": self.kept_step}

    def restore(self, state: dict[str, Any], kept: Tensors) -> None:
        """Go on from a checkpoint."""
        self._base, self.kept = state["base"], kept
        self.exceeded, self.kept_step = state["exceeded"], state["kept_step"]

    def _losses(self) -> list[float]:
        """Mean loss of each text, nats per token."""
        of_each = nll_of_each(
            self._model, self._backbone, self._examples, self._batch_tokens, "the budget's texts"
        )
        return [float(nll.mean()) for nll in of_each]
