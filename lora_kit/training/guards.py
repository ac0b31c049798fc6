"""Training that goes wrong ends at once, and says where: no loss, no gradient, or an explosion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.launch import current_launch
from lora_kit.training.callbacks import gradient_norm

# Steps whose mean loss is judged: one bad batch is no divergence.
WINDOW = 5
# Nats above the best window.
FAR = 3.0
# Of what it was over the first window, a loss that is not in nats: ipo's is a squared distance.
TIMES = 2.0
# Steps that float16's scale may take to find its size: it halves from 65,536.
SKIPPED = 20


class Guards(TrainerCallback):
    """Stops a training that trains nothing, or has diverged."""

    def __init__(
        self,
        choices: int | None,
        where: Callable[[], str],
        idle_steps: int = 0,
        may_end_at_zero: bool = False,
    ):
        """Plan.

        Args:
            choices: words, or classes, that the model chooses from; `None` where the loss is not in
                nats.
            where: the rows of the last batch and the last good checkpoint, in words.
            idle_steps: how many steps in a row may have nothing to learn from before any had: where
                rewards are compared, those in which all are the same.
            may_end_at_zero: whether a loss of 0 can be reached by learning: a row of a class that
                is certain has it in float32, a text has not.
        """
        self._guessing = math.log(choices) if choices else None
        self._may_end_at_zero = may_end_at_zero
        self._where = where
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
        """Look at the gradients before the first of them is applied.

        Raises:
            TrainingError: if all are zero, or one is infinite or no number.
        """
        # DeepSpeed has applied them by now, and shows none.
        if state.global_step > 0 or model is None or current_launch().deepspeed:
            return
        norm = gradient_norm(model)
        if not math.isfinite(norm) and not args.fp16:  # float16's first scale often overflows
            raise TrainingError(
                f"the gradient of step 1 is {norm}; lower training.learning_rate or choose another "
                "backbone.dtype (float16 overflows where bfloat16 and float32 do not)"
            )
        if norm == 0.0 and not self._idle_steps:
            raise TrainingError(
                "the gradient of step 1 is zero: nothing that is trained reaches the loss. Check "
                "adapter.target_modules, and that the data has supervised tokens"
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Look at a step's figures.

        Raises:
            TrainingError: if loss or gradient is infinite, no number or zero, or the loss explodes.
        """
        if not logs or "loss" not in logs:
            return
        step, loss, norm = state.global_step, float(logs["loss"]), float(logs["grad_norm"])
        if not math.isfinite(loss) or not (math.isfinite(norm) or args.fp16):
            self._stop(f"step {step}: the loss is {loss}, the gradient's norm {norm}")
        self._skipped = 0 if math.isfinite(norm) else self._skipped + 1
        if self._skipped == SKIPPED:
            self._stop(
                f"step {step}: float16 overflowed in {SKIPPED} steps in a row, none of which "
                "trained anything; choose another backbone.dtype"
            )
        if not (self._may_end_at_zero and step > 1):
            self._count_idle(step, loss, norm)
        self._losses = [*self._losses, loss][-WINDOW:]
        if len(self._losses) < WINDOW:
            return
        mean = sum(self._losses) / WINDOW
        self._first = mean if self._first is None else self._first
        self._best = min(mean, self._best)
        if self._exploded(mean, self._first):
            unit = "" if self._guessing is None else " nats"
            self._stop(
                f"step {step}: the loss exploded, {mean:.1f}{unit} over the last {WINDOW} steps "
                f"({self._first:.1f} over the first, {self._best:.1f} at best)"
            )

    def _exploded(self, mean: float, first: float) -> bool:
        if self._guessing is None:
            return mean > TIMES * first
        # Worse than to guess among all words, which no data is; or than the untrained model and far
        # from what was reached.
        guessing = mean > max(self._guessing, first) + 1
        return guessing or mean > max(first + 1, self._best + FAR)

    def _count_idle(self, step: int, loss: float, norm: float) -> None:
        # Where steps may be idle, a loss of 0 says nothing: gains and losses may cancel out.
        idle = norm == 0.0 or (loss == 0.0 and not self._idle_steps)
        if self._idle_steps and not idle:
            # From here on, all that there is to learn may be learned.
            self._may_end_at_zero = True
        self._idle = self._idle + 1 if idle else 0
        if self._idle > self._idle_steps:
            steps = f", as in the {self._idle_steps} before it" if self._idle_steps else ""
            raise TrainingError(
                f"step {step}: the loss is {loss}, the gradient's norm {norm}{steps}: nothing is "
                f"learned from {self._where()}"
            )

    def _stop(self, what: str) -> None:
        raise TrainingError(
            f"{what}; lower training.learning_rate or training.max_grad_norm. Seen in "
            f"{self._where()}"
        )
