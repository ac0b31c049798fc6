import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.data.dataset import prepare, validation_rows
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import TrainingError
from lora_kit.training.guards import MAX_SKIPPED_STEPS, WINDOW, Guards
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.trainer import TrainingResult, run_training
from lora_kit.training.validation import validation_loss
from tests.training_rows import training_rows


def trained(
    backbone: Backbone, recipe: Recipe, root: Path, **changes: Any
) -> tuple[TrainingResult, Any]:
    recipe = recipe.model_copy(
        update={
            "training": recipe.training.model_validate({**recipe.training.model_dump(), **changes})
        }
    )
    model = attach(backbone, recipe.adapter, recipe.seed)
    rows, _ = training_rows(recipe.data, recipe.seed)
    data = prepare(rows, backbone.tokenizer, recipe.data)
    held_out = prepare(validation_rows(recipe.data, recipe.seed), backbone.tokenizer, recipe.data)
    run = RunDirectory(root)
    result = run_training(TrainingInputs(recipe, backbone, model, data, held_out, run))
    return result, validation_loss(model, backbone, held_out, 4096)


def test_an_infinite_loss_stops_with_step_rows_and_checkpoint(
    tiny_backbone: Backbone, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError) as stopped:
        trained(
            tiny_backbone,
            tiny_recipe,
            tmp_path / "run",
            learning_rate=1e30,
            warmup_ratio=0.0,
            save_steps=1,
        )
    message = str(stopped.value)
    assert "step 2: not finite (got loss" in message
    assert message.count("chats.jsonl:") == tiny_recipe.training.batch_size
    assert "the last good checkpoint is" in message
    assert "step-000001" in message
    assert not (tmp_path / "run" / "adapter").exists()


def logged(guards: Guards, losses: list[float], norm: float = 1.0) -> None:
    for step, loss in enumerate(losses, start=1):
        state = SimpleNamespace(global_step=step)
        logs = {"loss": loss, "grad_norm": norm}
        guards.on_log(SimpleNamespace(fp16=False), state, SimpleNamespace(), logs=logs)  # type: ignore[arg-type]


def test_a_loss_beyond_guessing_is_an_explosion_and_a_bad_batch_is_none() -> None:
    guess = math.log(49152)
    fine = [3.0] * 20 + [14.0] + [3.0] * 20
    logged(Guards(math.log(49152), lambda: "row 3"), fine)
    # A model that knows nothing yet.
    logged(Guards(math.log(49152), lambda: "row 3"), [guess + 0.5] * 20)
    with pytest.raises(TrainingError, match=r"the loss diverged \(got 9\.6 nats .* row 3"):
        logged(Guards(math.log(49152), lambda: "row 3"), [6.0] * 20 + [12.0] * WINDOW)
    with pytest.raises(TrainingError, match=r"step 24: the loss diverged"):
        logged(Guards(math.log(49152), lambda: "row 3"), [3.0] * 10 + [2.0] * 10 + [6.0] * WINDOW)


def test_the_errors_of_numbers_may_differ_between_short_and_long_texts() -> None:
    def guards() -> Guards:
        return Guards(5.0, lambda: "row 3", in_nats=False)

    logged(guards(), [0.1] * 10 + [4.0] * 10)
    with pytest.raises(TrainingError, match=r"the loss diverged \(got 6\.0 over the last"):
        logged(guards(), [0.1] * 10 + [7.5] * WINDOW)


def test_a_float16_that_always_overflows_is_an_error() -> None:
    guards = Guards(math.log(49152), lambda: "row 3")

    def overflow(step: int) -> None:
        arguments, state = SimpleNamespace(fp16=True), SimpleNamespace(global_step=step)
        logs = {"loss": 3.0, "grad_norm": math.inf}
        guards.on_log(arguments, state, SimpleNamespace(), logs=logs)  # type: ignore[arg-type]

    for step in range(1, MAX_SKIPPED_STEPS):
        overflow(step)
    with pytest.raises(TrainingError, match=r"float16 overflowed at step 20 \(got 20 consecutive"):
        overflow(MAX_SKIPPED_STEPS)


@pytest.mark.parametrize(
    ("loss", "norm"), [(0.0, 1.0), (2.0, 0.0), (math.nan, 1.0), (2.0, math.inf)]
)
def test_nothing_to_learn_is_an_error(loss: float, norm: float) -> None:
    logged(Guards(math.log(49152), lambda: "row 3"), [2.0], 1.0)
    with pytest.raises(TrainingError, match=r"step 1[: ].*\(got .* row 3"):
        logged(Guards(math.log(49152), lambda: "row 3"), [loss], norm)


def test_training_stops_where_validation_no_longer_falls_and_the_best_is_kept(
    tiny_backbone: Backbone, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    result, after = trained(
        tiny_backbone,
        tiny_recipe,
        tmp_path / "run",
        epochs=40.0,
        learning_rate=0.3,
        lr_scheduler="constant",
        eval_steps=2,
        early_stopping_patience=3,
        keep_best=True,
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    measured = {line["step"]: line["validation_loss"] for line in lines if "loss" not in line}
    best = min(measured, key=lambda step: measured[step])
    assert result.steps < 160
    assert result.steps == best + 3 * 2
    assert result.kept_step == best
    assert after == pytest.approx(measured[best], abs=1e-5)
    assert result.validation_after == after


@pytest.mark.parametrize("schedule", ["wsd", "constant", "linear", "cosine"])
def test_the_learning_rate_follows_the_schedule(
    tiny_backbone: Backbone, tiny_recipe: Recipe, tmp_path: Path, schedule: str
) -> None:
    result, _ = trained(
        tiny_backbone,
        tiny_recipe,
        tmp_path / "run",
        epochs=5.0,
        lr_scheduler=schedule,
        warmup_ratio=0.2,
        learning_rate=1e-3,
        **({"decay_ratio": 0.25} if schedule == "wsd" else {}),
    )
    rates = [entry["learning_rate"] / 1e-3 for entry in result.history]
    assert len(rates) == 20
    assert rates[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    after = {
        "constant": [1.0] * 15,
        "linear": [1 - n / 16 for n in range(1, 16)],
        "cosine": [(1 + math.cos(math.pi * n / 16)) / 2 for n in range(1, 16)],
        "wsd": [1.0] * 11 + [1 - n / 5 for n in range(1, 5)],
    }[schedule]
    assert rates[5:] == pytest.approx(after)


def test_a_tracker_that_is_not_there_is_named(
    tiny_backbone: Backbone, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(
        TrainingError, match=r"training\.report_to: .* not installed \(got trackio\)"
    ):
        trained(tiny_backbone, tiny_recipe, tmp_path / "run", report_to=["trackio"])


@pytest.mark.parametrize("trackers", [[], ["tensorboard"]])
def test_trackers_get_what_the_log_has_and_nothing_goes_elsewhere(
    tiny_backbone: Backbone,
    tiny_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trackers: list[str],
) -> None:
    import socket

    def refuse(*_: Any) -> None:
        raise AssertionError("something phones home")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    trained(tiny_backbone, tiny_recipe, tmp_path / "run", report_to=trackers)
    assert (tmp_path / "run" / "tensorboard").exists() == bool(trackers)


def test_the_norm_of_a_step_is_that_of_its_gradients(tiny_backbone: Backbone) -> None:
    from lora_kit.training.callbacks import gradient_norm

    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert gradient_norm(model) == 5.0


def test_a_step_that_does_not_fit_says_what_to_lower(
    tiny_backbone: Backbone,
    tiny_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lora_kit.training import supervised

    def too_much(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(supervised, "logits_at", too_much)
    with pytest.raises(
        TrainingError, match=r"step 1 does not fit .* training\.max_tokens_per_batch"
    ):
        trained(tiny_backbone, tiny_recipe, tmp_path / "run")
