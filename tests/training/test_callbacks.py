"""Metrics log and plot during training."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.console import meter
from lora_kit.training.callbacks import MetricsLog
from lora_kit.training.plot import plot_training

PNG = b"\x89PNG\r\n\x1a\n"


class Driven:
    """Metrics log whose callbacks are called as by transformers, for three steps."""

    def __init__(self, root: Path, **options: Any):
        self.run = RunDirectory(root)
        self.arguments = TrainingArguments(output_dir=str(root / "unused"), use_cpu=True)
        self.state, self.control = TrainerState(epoch=0.0), TrainerControl()
        with meter("training", 3, visible=False) as progress:
            plot = partial(plot_training, validation=(None, None), path=self.run.training_plot)
            self.log = MetricsLog(self.run.metrics, progress, plot=plot, **options)
        self.log.on_train_begin(self.arguments, self.state, self.control)

    def step(self) -> None:
        self.state.global_step += 1
        logs = {
            "loss": 2.0 / self.state.global_step,
            "grad_norm": 1.0,
            "learning_rate": 1e-3,
            "tokens": 10 * self.state.global_step,
        }
        self.log.on_log(self.arguments, self.state, self.control, logs)

    @property
    def drawn(self) -> bytes:
        plot = self.run.training_plot
        return plot.read_bytes() if plot.is_file() else b""


def test_the_plot_is_there_before_the_training_ends_and_drawn_anew(tmp_path: Path) -> None:
    driven = Driven(tmp_path, is_main=True, plot_seconds=0.0)
    assert driven.drawn == b""
    driven.step()
    first = driven.drawn
    assert first.startswith(PNG)
    driven.log.record({"step": 1, "validation_loss": 1.5, "drift": 0.1})
    driven.step()
    assert driven.drawn.startswith(PNG)
    assert driven.drawn != first
    lines = [json.loads(line) for line in driven.run.metrics.open()]
    assert [line["step"] for line in lines] == [1, 1, 2]


@pytest.mark.parametrize(("is_main", "seconds"), [(True, math.inf), (False, 0.0)])
def test_the_plot_is_not_drawn_before_its_time_nor_by_other_processes(
    tmp_path: Path, is_main: bool, seconds: float
) -> None:
    driven = Driven(tmp_path, is_main=is_main, plot_seconds=seconds)
    driven.step()
    driven.step()
    assert driven.drawn == b""
    assert driven.run.metrics.is_file() == is_main
