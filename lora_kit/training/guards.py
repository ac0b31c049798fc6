"""Guards that stop training without a gradient, or with a diverged loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_kit.runtime.errors import TrainingError
from lora_kit.training.callbacks import gradient_norm

# Steps over which the loss is averaged: one bad batch is not a divergence.
WINDOW = 5
# Maximum rise above the lowest window.
MAX_RISE_NATS = 3.0
# Maximum factor on the first window, for a loss that is not in nats: ipo's is a squared distance.
MAX_RISE_FACTOR = 2.0
# Steps that float16's loss scale may skip until it fits: it starts at 65,536 and halves.
MAX_SKIPPED_STEPS = 20


class Guards(TrainerCallback):
    """Callback that stops training that has no gradient, or has diverged."""

    def __init__(
        self,
        chance_loss: float | None,
        location: Callable[[], str],
        idle_steps: int = 0,
        may_end_at_zero: bool = False,
        deepspeed: bool = False,
        in_nats: bool = True,
    ):
        """Create the callback.

        Args:
            chance_loss: loss of a model that has learned nothing, such as a uniform guess; `None`
                if it is not known.
            location: returns the rows of the last batch and the last good checkpoint, for messages.
            idle_steps: consecutive steps without a gradient that are tolerated before the first
                step with one; with compared rewards, steps in which all rewards are equal.
            may_end_at_zero: if true, a loss of 0 can be learned: in float32, a confident
                classification has one, a text has not.
            deepspeed: true if DeepSpeed trains, which has applied the gradients before they can be
                checked.
            in_nats: false for the errors of numbers, which differ between batches of short and of
                long texts by more than a loss in nats does.
        """
        self._in_nats = in_nats
        self._chance_loss = chance_loss
        self._may_end_at_zero = may_end_at_zero
        self._deepspeed = deepspeed
        self._location = location
        self._idle_steps = idle_steps
        self._idle = 0
        self._losses: list[float] = []
        self._first: float | None = None
        self._best = math.inf
        self._skipped = 0

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        model: torch.nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Check the gradients of step 1 before they are applied.

        Raises:
            TrainingError: if all gradients are zero, or one is infinite or NaN.
        """
        if state.global_step > 0 or model is None or self._deepspeed:
            return
        norm = gradient_norm(model)
        if not math.isfinite(norm) and not args.fp16:  # float16's first scale often overflows
            raise TrainingError(
                f"backbone.dtype: the gradient of step 1 is not finite (got norm {norm}). Fix: "
                "choose another dtype (float16 overflows where bfloat16 and float32 do not), or "
                "lower training.learning_rate"
            )
        if norm == 0.0 and not self._idle_steps:
            raise TrainingError(
                "adapter.target_modules: the gradient of step 1 is zero (got no trained parameter "
                "that influences the loss). Fix: check the modules, and that the data has "
                "supervised tokens"
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Check the loss and gradient norm of a step.

        Raises:
            TrainingError: if one of them is infinite, NaN or zero, or the loss has diverged.
        """
        if not logs or "loss" not in logs:
            return
        step, loss, norm = state.global_step, float(logs["loss"]), float(logs["grad_norm"])
        if not math.isfinite(loss) or not (math.isfinite(norm) or args.fp16):
            self._stop(f"step {step}: not finite (got loss {loss}, gradient norm {norm})")
        self._skipped = 0 if math.isfinite(norm) else self._skipped + 1
        if self._skipped == MAX_SKIPPED_STEPS:
            raise TrainingError(
                f"backbone.dtype: float16 overflowed at step {step} (got {MAX_SKIPPED_STEPS} "
                "consecutive steps without an update). Fix: choose another dtype. Seen in "
                f"{self._location()}"
            )
        if not (self._may_end_at_zero and step > 1):
            self._count_idle(step, loss, norm)
        self._losses = [*self._losses, loss][-WINDOW:]
        if len(self._losses) < WINDOW:
            return
        mean = sum(self._losses) / WINDOW
        self._first = mean if self._first is None else self._first
        self._best = min(mean, self._best)
        if self._diverged(mean, self._first):
            unit = " nats" if self._in_nats else ""
            self._stop(
                f"step {step}: the loss diverged (got {mean:.1f}{unit} over the last {WINDOW} "
                f"steps, {self._first:.1f} over the first, {self._best:.1f} at best)"
            )

    def _diverged(self, mean: float, first: float) -> bool:
        if self._chance_loss is None:
            return mean > MAX_RISE_FACTOR * first
        # Worse than uniform guessing, which no data causes; or worse than the untrained model and
        # far above the best loss.
        below_chance = mean > max(self._chance_loss, first) + 1
        has_risen = self._in_nats and mean > max(first + 1, self._best + MAX_RISE_NATS)
        return below_chance or has_risen

    def _count_idle(self, step: int, loss: float, norm: float) -> None:
        # If steps may be idle, a loss of 0 means nothing: advantages may cancel out.
        idle = norm == 0.0 or (loss == 0.0 and not self._idle_steps)
        if self._idle_steps and not idle:
            # After the first step with a gradient, training may have learned everything.
            self._may_end_at_zero = True
        self._idle = self._idle + 1 if idle else 0
        if self._idle > self._idle_steps:
            steps = f" in {self._idle_steps + 1} consecutive steps" if self._idle_steps else ""
            raise TrainingError(
                f"data.train: nothing to learn at step {step}{steps} (got loss {loss}, gradient "
                f"norm {norm}). Fix: check these rows: {self._location()}"
            )

    def _stop(self, problem: str) -> None:
        raise TrainingError(
            f"{problem}. Fix: lower training.learning_rate or training.max_grad_norm. Seen in "
            f"{self._location()}"
        )
