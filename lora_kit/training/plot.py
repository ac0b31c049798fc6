"""Plot of the training metrics, `training.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_kit.runtime.files import whole_file

# Shares of the figure, with space for tick labels of six characters: larger and smaller numbers are
# shown as multiples of a power of ten. Matplotlib's layout engines draw every figure three times.
MARGINS = {"left": 0.11, "right": 0.89, "top": 0.95, "bottom": 0.09, "hspace": 0.12}


def plot_training(
    history: Sequence[dict[str, float]],
    validation: tuple[float | None, float | None],
    path: Path,
) -> None:
    """Draw loss, drift, learning rate and gradient norm over the steps.

    Args:
        history: one entry per step, as in `metrics.jsonl`.
        validation: held-out loss before and after training, in nats per token.
        path: path of the PNG file.
    """
    from matplotlib.figure import Figure

    measured = [
        (entry["step"], entry["validation_loss"]) for entry in history if "validation_loss" in entry
    ]
    drifts = [(entry["step"], entry["drift"]) for entry in history if "drift" in entry]
    history = [entry for entry in history if "loss" in entry]
    steps = [entry["step"] for entry in history]
    figure = Figure(figsize=(8, 6))
    loss, rate = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": (2, 1), **MARGINS}
    )
    loss.plot(steps, [entry["loss"] for entry in history], linewidth=1.2, label="training")
    ends = [(x, y) for x, y in zip((0, steps[-1]), validation, strict=True) if y is not None]
    if points := sorted({*ends, *measured}):
        loss.plot(*zip(*points, strict=True), "o--", linewidth=1, label="validation")
    loss.set_ylabel("loss (nats per supervised token)")
    loss.legend(frameon=False)
    axes = [loss, rate]
    if drifts:
        axes.append(drift := loss.twinx())
        drift.plot(*zip(*drifts, strict=True), "s:", color="C4", linewidth=1)
        drift.set_ylabel("drift from the base (nats per token)", color="C4")
        drift.set_ylim(bottom=0)
    rate.plot(steps, [entry["grad_norm"] for entry in history], linewidth=1, color="C2")
    rate.set_ylabel("gradient norm", color="C2")
    rate.set_xlabel("optimizer step")
    other = rate.twinx()
    other.plot(steps, [entry["learning_rate"] for entry in history], linewidth=1, color="C3")
    other.set_ylabel("learning rate", color="C3")
    for axis in (*axes, other):
        axis.spines["top"].set_visible(False)
        axis.ticklabel_format(axis="y", scilimits=(-3, 4))
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
