"""Learning rates per module and depth, and gradual unfreezing."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_kit.pipeline import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.training import TrainingSpec
from lora_kit.runtime.errors import TrainingError
from lora_kit.training.learning_rates import GradualUnfreezing, parameter_groups

NAMES = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{n}.q_proj.lora_{factor}.default.weight"
        for n in (0, 1, 2)
        for factor in "AB"
    ),
    "model.norm.weight",
]


def rates_of(**changes: Any) -> dict[str, float]:
    parameters = {name: torch.nn.Parameter(torch.zeros(1)) for name in NAMES}
    spec = TrainingSpec(learning_rate=1.0, weight_decay=0.1, **changes)
    groups = parameter_groups(parameters, set(NAMES[:-1]), spec)
    names = {id(parameter): name for name, parameter in parameters.items()}
    assert groups[0]["lr"] == 1, "the logged rate is that of the first group"
    assert sum(len(group["params"]) for group in groups) == len(NAMES)
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.0 if "norm" in names[id(parameter)] else 0.1)
    return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}


def test_a_block_learns_more_slowly_than_the_one_above_it() -> None:
    rates = rates_of(layerwise_lr_decay=0.5)
    assert [rates[NAMES[index]] for index in (0, 1, 3, 5, 7)] == [0.125, 0.25, 0.5, 1, 1]


def test_an_output_head_stands_above_the_blocks_whatever_it_is_called() -> None:
    """GPT-NeoX has embed_in and embed_out."""
    names = ["gpt_neox.embed_in.weight", "gpt_neox.layers.1.dense.weight", "embed_out.weight"]
    parameters = {name: torch.nn.Parameter(torch.zeros(1)) for name in names}
    groups = parameter_groups(
        parameters, set(names), TrainingSpec(learning_rate=1.0, layerwise_lr_decay=0.5)
    )
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert [rates[id(parameter)] for parameter in parameters.values()] == [0.25, 1, 1]


def test_the_second_factor_learns_faster() -> None:
    rates = rates_of(loraplus_lr_ratio=16)
    assert all(rate == (16 if "lora_B" in name else 1) for name, rate in rates.items())


def test_a_module_has_a_rate_of_its_own_and_names_are_whole() -> None:
    rates = rates_of(lr_multipliers={"q_proj": 2, "layers.1": 3, "layer": 7}, loraplus_lr_ratio=2)
    assert [rates[name] for name in NAMES] == [1, 2, 4, 6, 12, 2, 4, 1]


def test_a_rate_of_what_is_not_trained_is_refused(tiny_recipe: Recipe, tmp_path: Path) -> None:
    message = r"lr_multipliers.qproj: no trained parameter .* layers, lora_A, lora_B, .*q_proj"
    with pytest.raises(TrainingError, match=message):
        trained(tiny_recipe, tmp_path / "run", lr_multipliers={"qproj": 2.0})


def trained(recipe: Recipe, run: Path, **training: Any) -> dict[str, float]:
    """Return the largest change of each second factor in two steps."""
    document = recipe.model_dump(mode="json")
    document["data"]["train"][0]["limit"] = 8
    document["training"] |= {
        "batch_size": 4,
        "warmup_ratio": 0.0,
        "lr_scheduler": "constant",
    } | training
    done = train(Recipe.model_validate(document), run)
    return {
        name: float(parameter.detach().abs().max())
        for name, parameter in done.session.model.named_parameters()
        if "lora_B" in name
    }


def test_rates_reach_the_weights(tiny_recipe: Recipe, tmp_path: Path) -> None:
    plain = trained(tiny_recipe, tmp_path / "plain")
    faster = trained(tiny_recipe, tmp_path / "faster", loraplus_lr_ratio=8)
    slower = trained(tiny_recipe, tmp_path / "slower", layerwise_lr_decay=0.1)
    for name, moved in plain.items():
        # Adam's first steps have about the size of the learning rate.
        assert faster[name] == pytest.approx(8 * moved, rel=0.5)
        factor = 0.1 if ".layers.0." in name else 1
        assert slower[name] == pytest.approx(factor * moved, rel=0.5)


def test_blocks_begin_from_the_last_to_the_first(tiny_recipe: Recipe, tmp_path: Path) -> None:
    waiting = trained(tiny_recipe, tmp_path / "waiting", gradual_unfreezing_steps=2)
    begun = trained(tiny_recipe, tmp_path / "begun", gradual_unfreezing_steps=1)
    for name, moved in waiting.items():
        assert (moved > 0) is (".layers.1." in name)
    assert all(moved > 0 for moved in begun.values())


def test_advice_on_gradual_unfreezing_is_not_followed_by_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    layers = [f"model.layers.{n}.q_proj.weight" for n in range(4)]
    parameters = {
        name: torch.nn.Parameter(torch.zeros(1)) for name in ("model.embed_tokens.weight", *layers)
    }
    GradualUnfreezing(parameters, 50, 40)
    said = " ".join(capsys.readouterr().err.split())
    assert "4 of 5 groups of layers are not trained within 40 steps (got 50)" in said
    assert "Fix: set it to 9" in said
    GradualUnfreezing(parameters, 9, 40)
    assert not capsys.readouterr().err
    GradualUnfreezing(parameters, 1, 4)
    assert "Fix: train longer" in capsys.readouterr().err


def test_lora_plus_is_for_lora(tiny_recipe: Recipe) -> None:
    document = tiny_recipe.model_dump(mode="json")
    document |= {"adapter": {"method": "ia3"}}
    document["training"]["loraplus_lr_ratio"] = 16
    with pytest.raises(
        ValueError,
        match=re.escape(
            "training.loraplus_lr_ratio: needs LoRA's second factor, and adapter.method is ia3"
        ),
    ):
        Recipe.model_validate(document)
