"""Hints from the number of examples."""

import pytest

from lora_kit.data.prepared import Counts
from lora_kit.preflight.guidance import recipe_hints
from lora_kit.recipe.recipe import Recipe


def counts(used: int, supervised: int = 2_000, replay: int = 0) -> Counts:
    return Counts(used, used, 0, 0, 2 * supervised, supervised, replay)


def hints(used: int, *overrides: str, supervised: int = 2_000, parameters: int = 5_000_000) -> str:
    recipe = Recipe.load("quickstart", overrides)
    found = recipe_hints(recipe, counts(used, supervised), parameters)
    return " ".join(one for hint in found for one in hint.assignments)


def test_a_recipe_that_suits_its_examples_is_left_alone() -> None:
    assert hints(400) == ""


@pytest.mark.parametrize(
    ("used", "overrides", "wanted"),
    [
        (100, ["training.batch_size=8"], "training.batch_size=2"),
        (6, ["training.batch_size=8"], "training.batch_size=1 training.epochs=3"),
        (400, ["training.learning_rate=1e-6"], "training.learning_rate=0.001"),
        (4000, ["training.learning_rate=1e-2"], "training.learning_rate=0.0004"),
        (
            4000,
            ["adapter.method=full", "backbone.quantization=none", "training.learning_rate=1e-3"],
            "training.learning_rate=3e-05",
        ),
        (400, ["training.epochs=5"], "training.eval_steps=20 training.keep_best=true"),
        (150, ["evaluation.arms=[base, adapter]"], "evaluation.arms=[base, adapter, fewshot]"),
        (
            150,
            ["adapter.method=full", "backbone.quantization=none", "training.learning_rate=1e-4"],
            "adapter.method=lora training.learning_rate=5e-4",
        ),
    ],
)
def test_suggested_changes(used: int, overrides: list[str], wanted: str) -> None:
    assert wanted in hints(used, *overrides)


def test_a_rank_too_small_for_the_data_gets_a_hint() -> None:
    few, many = 100_000, 10_000_000
    assert hints(400, supervised=few, parameters=100_000) == ""
    # 5,000,000 parameters are needed, 50 times as many as rank 16 has here.
    assert hints(400, supervised=many, parameters=100_000) == "adapter.rank=1024 adapter.alpha=2048"


def test_the_hints_are_recipes_that_load() -> None:
    recipe = Recipe.load("quickstart", ["training.learning_rate=1e-6", "training.epochs=4"])
    for hint in recipe_hints(recipe, counts(20), 5_000_000):
        assert Recipe.load("quickstart", hint.assignments)


def test_replay_counts_as_no_example_of_the_task() -> None:
    recipe = Recipe.load("quickstart", ["evaluation.arms=[base, adapter]"])
    assert not recipe_hints(recipe, counts(300), 5_000_000)
    assert recipe_hints(recipe, counts(300, replay=150), 5_000_000)


@pytest.mark.parametrize(
    "change", ["data.validation=[]", "retention.early_stopping={}", "adapter.method=adalora"]
)
def test_hints_never_suggest_a_refused_recipe(change: str) -> None:
    found = hints(400, "training.epochs=5", change)
    assert "keep_best" not in found
