"""Callbacks for the metrics log, the progress bar, the sampler's epoch and signals."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_kit.data.batches import LengthGroupedSampler
from lora_kit.runtime.console import Meter
from lora_kit.runtime.files import write_text
from lora_kit.training.sharded import full_tensor

PLOT_SECONDS = 60.0
# SIGTERM: the machine shuts down or the job is cancelled; SIGUSR1: sent by `sbatch --signal=USR1`.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class MetricsLog(TrainerCallback):
    """Log of one JSON object per step in `metrics.jsonl`, with progress bar and plot.

    Attributes:
        history: all entries logged so far, including those of an interrupted attempt.
    """

    def __init__(
        self,
        path: Path,
        meter: Meter,
        is_main: bool,
        plot: Callable[[list[dict[str, float]]], None],
        logged_metrics: Sequence[str] = (),
        plot_seconds: float = PLOT_SECONDS,
    ):
        """Create the log; nothing is written yet.

        Args:
            path: path of `metrics.jsonl`.
            meter: progress bar.
            is_main: true on the main process; the others write nothing.
            plot: draws the entries logged so far.
            logged_metrics: further metrics to log for steps that have them; the first of a step is
                also shown in the progress bar.
            plot_seconds: minimum seconds between two drawings.
        """
        self._path = path
        self._meter = meter
        self._is_main = is_main
        self._plot = plot
        self._logged_metrics = logged_metrics
        self._plot_seconds = plot_seconds
        self._started = self._plotted = time.monotonic()
        self._earlier_seconds = 0.0
        self._earlier_tokens = 0.0
        self.history: list[dict[str, float]] = []

    def on_train_begin(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock; keep the entries of an earlier attempt up to its checkpoint."""
        self._started = time.monotonic()
        if not self._is_main:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if state.global_step:
            lines = self._path.read_text().splitlines() if self._path.is_file() else []
            entries = [json.loads(line) for line in lines if line.endswith("}")]
            self.history = [entry for entry in entries if entry["step"] <= state.global_step]
            self._meter.advance(state.global_step)
            if steps := [entry for entry in self.history if "seconds" in entry]:
                self._earlier_seconds = steps[-1]["seconds"]
                self._earlier_tokens = steps[-1]["tokens"]
        write_text(self._path, "".join(json.dumps(entry) + "\n" for entry in self.history))

    def on_log(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Log the metrics of a step."""
        if not logs or "loss" not in logs or not self._is_main:
            return
        seconds = time.monotonic() - self._started
        entry = {
            "step": state.global_step,
            "epoch": round(state.epoch or 0.0, 4),
            "loss": float(logs["loss"]),
            "grad_norm": float(logs["grad_norm"]),
            "learning_rate": float(logs["learning_rate"]),
            "tokens": int(logs["tokens"]),
            "seconds": round(self._earlier_seconds + seconds, 3),
        }
        names = [name for name in self._logged_metrics if logs.get(name) is not None]
        self.record(entry | {name: float(logs[name]) for name in names})
        rate = (entry["tokens"] - self._earlier_tokens) / seconds if seconds else 0.0
        shown = "".join(f", {name} {float(logs[name]):.3f}" for name in names[:1])
        self._meter.advance(note=f"loss {entry['loss']:.3f}{shown}, {rate:.0f} token/s")
        if time.monotonic() - self._plotted >= self._plot_seconds:
            self._plot(self.history)
            self._plotted = time.monotonic()

    def record(self, entry: dict[str, float]) -> None:
        """Append an entry to the history and to `metrics.jsonl`."""
        if not self._is_main:
            return
        self.history.append(entry)
        with self._path.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")


class SamplerEpochs(TrainerCallback):
    """Callback that sets the sampler's epoch, and the recipe's `save_steps` on resuming.

    With a plain data loader transformers does not set the epoch, and every epoch would have the
    order of the first. It takes `save_steps` from the checkpoint.
    """

    def __init__(self, sampler: Callable[[], LengthGroupedSampler]):
        self._sampler = sampler

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Use the recipe's `save_steps`, not those stored in a checkpoint."""
        state.save_steps = args.save_steps

    def on_epoch_begin(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Set the epoch; `state.epoch` is fractional when an epoch is resumed."""
        self._sampler().set_epoch(int((state.epoch or 0.0) + 1e-6))


class Interruption(TrainerCallback):
    """Callback that, on a signal, saves a checkpoint and stops after the current step.

    Attributes:
        received: name of the signal; empty if none was received.
    """

    def __init__(self, agreed: Callable[[bool], bool]):
        """Create the callback.

        Args:
            agreed: returns true if its argument is true on any process; a signal may reach only
                one of them, but all must stop after the same step.
        """
        self._agreed = agreed
        self.received = ""

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record signals inside the context; restore their handlers afterwards."""
        previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def on_step_end(
        self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Request a checkpoint and the end of training if a signal was received."""
        if self._agreed(bool(self.received)) and state.global_step < state.max_steps:
            self.received = self.received or "a signal to another process"
            control.should_save = control.should_training_stop = True


def gradient_norm(model: torch.nn.Module) -> float:
    """Return the norm of the gradients of all trained parameters, sharded ones included."""
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    return float(full_tensor(get_total_norm(gradients)))
