"""Features that do not tell domains apart: losses, reversed gradient, and trainings with them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lora_kit import pipeline
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import RecipeError
from lora_kit.training.domain_alignment.losses import (
    coral_loss,
    domain_classifier,
    domain_loss,
    reversal_strength,
    reversed_gradient,
)
from tests.classifying import classes_recipe
from tests.training.cut import cut_off, losses, sha256


def _recipe(model: Path, folder: Path, method: str, **training: Any) -> Recipe:
    rows = [{"text": f"{n} heaps of sand, in words that no row has"} for n in range(24)]
    target = folder / "target.jsonl"
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    alignment = {"target": [{"source": str(target)}], "method": method}
    own = {"batch_size": 8, "domain_alignment": alignment} | training
    return classes_recipe(model, folder, training=own)


def test_coral_is_the_distance_of_the_covariances() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(n, 3, generator=generator) for n in (5, 7))
    c, d = np.cov(one.numpy().T), np.cov(other.numpy().T)
    norm = np.linalg.norm
    expected = norm(c - d) ** 2 / (norm(c) ** 2 + norm(d) ** 2)
    assert float(coral_loss(one, other)) == pytest.approx(expected, rel=1e-5)
    # The place of the features is not compared, only their spread.
    assert float(coral_loss(one, one + 3)) == pytest.approx(0.0, abs=1e-9)
    assert float(coral_loss(9 * one, 9 * other)) == pytest.approx(expected, rel=1e-5)
    # Features that are all equal have no distance.
    assert float(coral_loss(torch.ones(2, 3), torch.ones(2, 3))) == 0


def test_the_classifier_learns_what_the_features_unlearn() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(6, 4, generator=generator) for _ in range(2))
    torch.manual_seed(0)
    classifier = domain_classifier(4)

    def gradients(factor: float | None) -> list[torch.Tensor]:
        features = [one.clone().requires_grad_() for one in (source, target)]
        given = [one if factor is None else reversed_gradient(one, factor) for one in features]
        loss = domain_loss(classifier, *given)
        return list(torch.autograd.grad(loss, [*features, *classifier.parameters()]))

    straight, turned = gradients(None), gradients(0.25)
    for one, other in zip(straight[:2], turned[:2], strict=True):
        torch.testing.assert_close(other, -0.25 * one)
    for one, other in zip(straight[2:], turned[2:], strict=True):
        torch.testing.assert_close(other, one)
    assert (reversal_strength(0), reversal_strength(1)) == (0.0, pytest.approx(1, abs=1e-4))
    assert reversal_strength(0.1) == pytest.approx(math.tanh(0.5))


def test_each_domain_has_half_of_the_loss() -> None:
    classifier = domain_classifier(2)
    for parameter in classifier.parameters():
        torch.nn.init.zeros_(parameter)
    classifier[2].bias.data.fill_(-2.0)  # sure of the source
    found = domain_loss(classifier, torch.zeros(9, 2), torch.zeros(1, 2)).item()
    of_source, of_target = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    assert found == pytest.approx((of_source + of_target) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("which", "method"),
    [("tiny_encoder", "adversarial"), ("tiny_encoder", "coral"), ("tiny", "adversarial")],
)
def test_an_aligned_training_goes_on_where_it_was_cut_off(
    which: str,
    method: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = request.getfixturevalue(which)
    recipe = _recipe(model, tmp_path, method, epochs=2.0, save_steps=1)
    cut_off(monkeypatch, recipe, tmp_path / "cut", 2)
    pipeline.train(recipe, tmp_path / "cut", resume=True)
    whole = pipeline.train(recipe, tmp_path / "whole")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert sha256(tmp_path / "cut") == sha256(tmp_path / "whole")
    assert all(entry["domain_loss"] > 0 for entry in whole.result.history)
    assert not any("domain" in name for name in load_file(_weights(tmp_path / "whole")))


def test_the_alignment_changes_the_gradient_and_not_the_loss(tiny: Path, tmp_path: Path) -> None:
    def first(name: str, **training: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        recipe = _recipe(tiny, tmp_path, "coral", **training)
        trained = pipeline.train(recipe, tmp_path / name)
        return trained.result.history[0], load_file(_weights(tmp_path / name))

    (plain, weights), (aligned, changed) = (
        first("plain", domain_alignment=None, micro_batch_size=8),
        first("aligned"),
    )
    assert aligned["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert aligned["tokens"] == plain["tokens"]
    assert any(not torch.equal(weights[name], changed[name]) for name in weights)


def test_other_texts_of_the_target_do_not_resume_a_training(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(tiny_encoder, tmp_path, "adversarial", save_steps=1)
    cut_off(monkeypatch, recipe, tmp_path / "cut", 2)
    with (tmp_path / "target.jsonl").open("a") as stream:
        stream.write('{"text": "one more heap"}\n')
    with pytest.raises(RecipeError, match=r"the texts of training\.domain_alignment\.target"):
        pipeline.train(recipe, tmp_path / "cut", resume=True)


def _weights(run: Path) -> Path:
    return run / "adapter" / "adapter_model.safetensors"
