"""What happens beside the steps: the log, the progress bar, the signals."""

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
from lora_kit.training.sharded import whole

PLOT_SECONDS = 60.0
# SIGTERM: a machine goes down or a job is cancelled; SIGUSR1: what `sbatch --signal=USR1` sends.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class MetricsLog(TrainerCallback):
    """Writes one JSON object a step to `metrics.jsonl`, moves the progress bar, draws the plot."""

    def __init__(
        self,
        path: Path,
        meter: Meter,
        is_main: bool,
        plot: Callable[[list[dict[str, float]]], None],
        figures: Sequence[str] = (),
        plot_seconds: float = PLOT_SECONDS,
    ):
        """Plan.

        Args:
            path: of `metrics.jsonl`.
            meter: the progress bar.
            is_main: whether this process writes; the others do nothing here.
            plot: draws what was logged so far.
            figures: that are written down where a step has them; the first is shown as well.
            plot_seconds: from one drawing to the next, at least.
        """
        self._path = path
        self._meter = meter
        self._is_main = is_main
        self._plot = plot
        self._figures = figures
        self._plot_seconds = plot_seconds
        self._started = self._plotted = time.monotonic()
        self._earlier_seconds = 0.0
        self._earlier_tokens = 0.0
        self.history: list[dict[str, float]] = []

    def on_train_begin(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock; of an earlier attempt, keep what its checkpoint knows of."""
        self._started = time.monotonic()
        if not self._is_main:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if state.global_step:
            lines = self._path.read_text().splitlines() if self._path.is_file() else []
            kept = [json.loads(line) for line in lines if line.endswith("}")]
            self.history = [entry for entry in kept if entry["step"] <= state.global_step]
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
        """Record a step's figures."""
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
        found = {name: float(logs[name]) for name in self._figures if logs.get(name) is not None}
        self.record(entry | found)
        rate = (entry["tokens"] - self._earlier_tokens) / seconds if seconds else 0.0
        shown = "".join(
            f", {name} {found[name]:.3f}" for name in self._figures[:1] if name in found
        )
        self._meter.advance(note=f"loss {entry['loss']:.3f}{shown}, {rate:.0f} token/s")
        if time.monotonic() - self._plotted >= self._plot_seconds:
            self._plot(self.history)
            self._plotted = time.monotonic()

    def record(self, entry: dict[str, float]) -> None:
        """Add a line to `metrics.jsonl`."""
        if not self._is_main:
            return
        self.history.append(entry)
        with self._path.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")


class Epochs(TrainerCallback):
    """Tells the sampler which epoch it is.

    Nobody else does: the loader is a plain one, and each epoch would have the order of the first.
    """

    def __init__(self, sampler: Callable[[], LengthGroupedSampler]):
        self._sampler = sampler

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Take the recipe's steps, not those that a checkpoint was written with."""
        state.save_steps = args.save_steps

    def on_epoch_begin(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Set it; `state.epoch` is a whole number at its beginning, and more where one goes on."""
        self._sampler().set_epoch(int((state.epoch or 0.0) + 1e-6))


class Interruption(TrainerCallback):
    """Turns a signal into a checkpoint and an end after the step that is under way.

    Attributes:
        received: name of the signal, empty if none came.
    """

    def __init__(self, agreed: Callable[[bool], bool]):
        """Plan.

        Args:
            agreed: whether any process says so: a signal may reach one of them alone, and all have
                to stop after the same step.
        """
        self._agreed = agreed
        self.received = ""

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While open, the signals are noted; afterwards they do what they did before."""
        previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def on_step_end(
        self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint and the end."""
        if self._agreed(bool(self.received)) and state.global_step < state.max_steps:
            self.received = self.received or "a signal to another process"
            control.should_save = control.should_training_stop = True


def gradient_norm(model: torch.nn.Module) -> float:
    """Norm of the gradients of all that is trained, of the whole where they are divided."""
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    return float(whole(get_total_norm(gradients)))
