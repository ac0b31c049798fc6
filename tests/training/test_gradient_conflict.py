"""Gradient conflicts between tasks, and PCGrad."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_kit.pipeline import Trained, train
from lora_kit.preflight.context import PreflightContext
from lora_kit.preflight.launch_checks import require_full_gradients
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.training import GradientConflictSpec
from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.launch import Launch
from lora_kit.training.gradient_conflict import GradientConflict, mean_cosines, project_conflicts


def gradient(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(values[:1]), torch.tensor(values[1:])]


def flat(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.flatten() for part in parts])


def test_pcgrad_removes_the_conflicting_component() -> None:
    one, other = gradient(1.0, 0.0, 1.0), gradient(-1.0, 1.0, 0.0)
    found = project_conflicts({0: one, 1: other}, random.Random(0))
    # Each gradient is orthogonal to the original of the other.
    assert flat(found[0]) @ flat(other) == pytest.approx(0, abs=1e-6)
    assert flat(found[1]) @ flat(one) == pytest.approx(0, abs=1e-6)
    assert flat(found[0]).tolist() == pytest.approx([0.5, 0.5, 1.0])


def test_gradients_that_agree_are_left_alone() -> None:
    one, other = gradient(1.0, 0.5, 0.0), gradient(0.2, 1.0, 3.0)
    found = project_conflicts({0: one, 1: other}, random.Random(0))
    assert torch.equal(flat(found[0]), flat(one))
    assert torch.equal(flat(found[1]), flat(other))


def test_a_step_that_overflows_is_neither_recorded_nor_projected() -> None:
    """The loss scaler of float16 skips such a step."""
    found: list[dict[str, float]] = []
    spec = GradientConflictSpec(steps=1, pcgrad=True)
    conflict = GradientConflict(spec, [0, 1], ["one", "other"], 0, found.append)
    parameters = [torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(2))]
    odd = {0: gradient(math.inf, -math.inf, 1.0), 1: gradient(1.0, 1.0, 1.0)}
    conflict.combine(parameters, odd, 0)
    assert found == []
    assert [p.grad.tolist() for p in parameters if p.grad is not None] == [
        [math.inf],
        [-math.inf, 2.0],
    ]
    conflict.combine(parameters, {0: gradient(1.0, 0.0, 0.0), 1: gradient(1.0, 0.0, 0.0)}, 1)
    assert found == [{"step": 2, "cosine: one, other": 1.0}]


@pytest.mark.parametrize("launch", [Launch(deepspeed=True, zero_stage=2), Launch(fsdp=True)])
def test_one_process_of_a_launch_that_steps_by_itself_is_refused(
    two_tasks: dict[str, Any], launch: Launch
) -> None:
    document = {**two_tasks, "training": {**two_tasks["training"], "gradient_conflict": {}}}
    with pytest.raises(TrainingError, match=r"training\.gradient_conflict needs full gradients"):
        require_full_gradients(PreflightContext(Recipe.model_validate(document), launch=launch))


@pytest.fixture
def two_tasks(tiny_recipe: Recipe, tmp_path: Path) -> dict[str, Any]:
    """Two sources with the same questions and contradictory answers."""
    document: dict[str, Any] = tiny_recipe.model_dump(mode="json")
    sources = []
    for name, answer in (("yes", "Yes"), ("no", "No")):
        path = tmp_path / f"{name}.jsonl"
        rows = [{"prompt": f"Is {n} a number?", "completion": answer} for n in range(8)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append({"source": str(path)})
    document["data"] |= {"train": sources, "validation": []}
    document["training"] |= {"batch_size": 16, "epochs": 8, "learning_rate": 2e-2}
    return document


def trained(document: dict[str, Any], directory: Path, **training: Any) -> Trained:
    changed = {**document, "training": document["training"] | training}
    return train(Recipe.model_validate(changed), directory)


def weights(done: Trained) -> torch.Tensor:
    named = done.session.model.named_parameters()
    return torch.cat([p.detach().flatten() for name, p in named if "lora_" in name])


def test_comparing_changes_nothing_and_pcgrad_does(
    two_tasks: dict[str, Any], tmp_path: Path
) -> None:
    plain = trained(two_tasks, tmp_path / "plain")
    compared = trained(two_tasks, tmp_path / "compared", gradient_conflict={"steps": 2})
    projected = trained(
        two_tasks, tmp_path / "operated", gradient_conflict={"steps": 2, "pcgrad": True}
    )
    # Equal up to rounding of the sums, which Adam's first steps amplify.
    assert torch.allclose(weights(plain), weights(compared), atol=2e-3)
    far = (weights(projected) - weights(plain)).norm()
    assert far > 5 * (weights(compared) - weights(plain)).norm()
    assert plain.result.gradient_conflict == {}

    lines = [json.loads(line) for line in compared.session.run.metrics.read_text().splitlines()]
    seen = [entry for entry in lines if any(key.startswith("cosine: ") for key in entry)]
    assert [entry["step"] for entry in seen] == [1, 3, 5, 7]
    [(pair, mean)] = compared.result.gradient_conflict.items()
    assert mean == pytest.approx(math.fsum(e[f"cosine: {pair}"] for e in seen) / 4)
    assert -1 <= mean <= 1
    # After some steps, yes and no are about equally likely, and the gradients conflict.
    assert seen[-1][f"cosine: {pair}"] < seen[0][f"cosine: {pair}"]
    record = compared.session.run.load_record()["training"]
    assert record["gradient_conflict"] == compared.result.gradient_conflict


def test_means_are_over_compared_steps() -> None:
    history = [{"step": 1, "cosine: a, b": 0.5}, {"step": 1, "loss": 2.0}, {"cosine: a, b": -0.1}]
    assert mean_cosines(history) == {"a, b": pytest.approx(0.2)}


def test_one_task_has_nothing_to_conflict_with(tiny_recipe: Recipe) -> None:
    document = tiny_recipe.model_dump(mode="json")
    document["training"]["gradient_conflict"] = {}
    with pytest.raises(ValueError, match=r"training\.gradient_conflict: compares the sources of"):
        Recipe.model_validate(document)
