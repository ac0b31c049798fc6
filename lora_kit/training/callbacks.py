"""What happens beside the steps: the log, the progress bar, the check of the first gradient."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_kit.console import Meter
from lora_kit.errors import TrainingError


class MetricsLog(TrainerCallback):
    """Writes one JSON object a step to `metrics.jsonl` and moves the progress bar."""

    def __init__(self, path: Path, meter: Meter, is_main: bool):
        self._path = path
        self._meter = meter
        self._is_main = is_main
        self._started = time.monotonic()
        self.history: list[dict[str, float]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock and an empty file."""
        self._started = time.monotonic()
        if self._is_main:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text("")

    def on_log(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Record a step's figures.

        Raises:
            TrainingError: if the loss is infinite or no number.
        """
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(float(logs["loss"])):
            raise TrainingError(
                f"the loss of step {state.global_step} is {logs['loss']}; lower "
                "training.learning_rate or training.max_grad_norm. No adapter was written"
            )
        if not self._is_main:
            return
        seconds = time.monotonic() - self._started
        entry = {
            "step": state.global_step,
            "epoch": round(state.epoch or 0.0, 4),
            "loss": float(logs["loss"]),
            "grad_norm": float(logs["grad_norm"]),
            "learning_rate": float(logs["learning_rate"]),
            "tokens": int(logs["tokens"]),
            "seconds": round(seconds, 3),
        }
        self.history.append(entry)
        with self._path.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
        rate = entry["tokens"] / seconds if seconds else 0.0
        self._meter.advance(note=f"loss {entry['loss']:.3f}, {rate:.0f} token/s")


class FirstStepCheck(TrainerCallback):
    """Stops a training that trains nothing, or whose loss is no number."""

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
        if state.global_step > 0 or model is None:
            return
        gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
        norm = math.sqrt(sum(float(g.float().square().sum()) for g in gradients))
        if not math.isfinite(norm) and not args.fp16:  # float16's first scale often overflows
            raise TrainingError(
                f"the gradient of step 1 is {norm}; lower training.learning_rate or choose another "
                "backbone.dtype (float16 overflows where bfloat16 and float32 do not)"
            )
        if norm == 0.0:
            raise TrainingError(
                "the gradient of step 1 is zero: nothing that is trained reaches the loss. Check "
                "adapter.targets, and that the data has supervised tokens"
            )
