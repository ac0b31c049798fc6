"""Memory of the evaluation of the merged model, as a plan shows it."""

from __future__ import annotations

import pytest
from rich.console import Console

from lora_kit.evaluation.engine.batching import LOGIT_BYTES
from lora_kit.preflight.memory import Device
from lora_kit.preflight.merged_memory import MergedMemory, merged_memory
from lora_kit.preflight.show_estimate import show_merged
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import RecipeError

BILLION = 10**9


def of(recipe: Recipe, device: Device = "cuda", **changed: dict[str, object]) -> MergedMemory:
    value = recipe.model_dump(mode="json")
    for section, fields in changed.items():
        value[section] |= fields
    return merged_memory(Recipe.model_validate(value), 70 * BILLION, device, base_bytes=1000)


def test_weights_are_counted_in_the_dtype_in_which_they_are_loaded(tiny_recipe: Recipe) -> None:
    half = of(tiny_recipe, backbone={"dtype": "bfloat16"})
    assert (half.dtype, half.weights) == ("bfloat16", 140 * BILLION)
    assert half.total == 1000 + LOGIT_BYTES["cuda"] + 140 * BILLION
    # What half precision would round away is stored in float32.
    assert half.total_in_float32 == half.total + 140 * BILLION
    named = of(tiny_recipe, backbone={"dtype": "bfloat16"}, merge={"dtype": "bfloat16"})
    assert (named.total, named.total_in_float32) == (half.total, None)
    finer = of(tiny_recipe, backbone={"dtype": "bfloat16"}, merge={"dtype": "float32"})
    assert (finer.dtype, finer.total) == ("float32", half.total_in_float32)


def test_weights_are_spread_over_gpus_alone(tiny_recipe: Recipe) -> None:
    spread = {"backbone": {"dtype": "bfloat16"}, "evaluation": {"gpus": 4}}
    assert of(tiny_recipe, **spread).weights == 35 * BILLION
    assert of(tiny_recipe, "cpu", **spread).weights == 140 * BILLION


@pytest.mark.parametrize(
    ("gpus", "shown"),
    [(1, "fits on no known GPU It may not fit. Fix: raise evaluation.gpus"), (8, "each of 8 GPUs")],
)
def test_a_plan_says_on_what_the_merged_model_fits(
    tiny_recipe: Recipe, capsys: pytest.CaptureFixture[str], gpus: int, shown: str
) -> None:
    found = of(tiny_recipe, backbone={"dtype": "bfloat16"}, evaluation={"gpus": gpus})
    show_merged(found, None, Console(width=400))
    said = " ".join(capsys.readouterr().out.split())
    assert shown in said
    assert ("It may not fit" in said) == (gpus == 1)
    show_merged(found, 10 * BILLION, Console(width=400))
    assert "It may not fit. Fix: raise evaluation.gpus, or" in capsys.readouterr().out


def test_a_model_needs_one_gpu_at_least(tiny_recipe: Recipe) -> None:
    with pytest.raises((RecipeError, ValueError), match="gpus"):
        of(tiny_recipe, evaluation={"gpus": 0})
