"""Search spaces: ranges and lists, drawn and checked before the first trial."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from lora_kit.pipeline.sweep import SweepRequest
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sweep import SweepSpec, duration_seconds
from lora_kit.runtime.errors import RecipeError
from lora_kit.selection.sweep.space import Dimension, field_value, search_space


def drawn(dimension: Dimension, count: int = 40) -> list[str]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [dimension.suggest(study.ask()) for _ in range(count)]


def test_a_range_of_numbers() -> None:
    one = Dimension.of("training.learning_rate", "1e-5..1e-3:log")
    values = list(map(float, drawn(one)))
    assert all(1e-5 <= value <= 1e-3 for value in values)
    # Half of them below the geometric mean.
    assert 10 <= sum(value < 1e-4 for value in values) <= 30
    assert all("." in text for text in drawn(one)), "YAML reads 1e-05 as a text"


def test_a_range_of_whole_numbers_and_lists() -> None:
    values = drawn(Dimension.of("adapter.rank", "4..6"))
    assert set(values) == {"4", "5", "6"}
    assert set(drawn(Dimension.of("adapter.rank", "8, 16"))) == {"8", "16"}
    assert set(drawn(Dimension.of("training.optim", ["adamw", None, True]))) == {
        "adamw",
        "null",
        "true",
    }


@pytest.mark.parametrize(
    "values",
    ["8", "8,8", "", "1e-3..1e-4", "0..1:log", "-1..1:log", "a..b", [8], [8, 8], "1e-3,0.001"],
)
def test_what_is_no_space_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match=r"adapter.rank: .*`8,16,32`"):
        SweepSpec.model_validate({"over": {"adapter.rank": values}})


@pytest.mark.parametrize(
    ("values", "given", "parameter"),
    [
        ("1e-4..1e-3", 5e-4, 5e-4),
        ("1e-4..1e-3", 5e-3, None),
        ("4..16", 8, 8),
        ("4..16", True, None),
        ("8,16", 16, "16"),
        ("8,16", 32, None),
        ("8,16", "all", None),
        (["a", None], None, "null"),
    ],
)
def test_the_value_of_the_recipe_as_it_is_is_found(values: Any, given: Any, parameter: Any) -> None:
    assert Dimension.of("x.y", values).parameter(given) == parameter


def test_a_value_between_whole_ends_is_none_of_a_range_of_whole_numbers() -> None:
    assert Dimension.of("x.y", "0..2").parameter(0.5) is None
    assert Dimension.of("x.y", "0..2").parameter(1.0) == 1


def test_a_range_of_fractions_is_refused_where_the_field_takes_whole_numbers_alone() -> None:
    """The ends alone are whole; what is drawn is not."""
    request = SweepRequest("quickstart")
    with pytest.raises(RecipeError, match=r"--over adapter\.rank: must be an integer.*got 26\."):
        search_space({"adapter.rank": "4..64.0"}, request.recipe)


def test_values_that_work_together_alone_are_searched() -> None:
    """Patience needs a step to look at the loss: neither is searched without the other."""
    request = SweepRequest("quickstart", ["data.validation=[]"])
    patience = {"training.early_stopping_patience": "2,3"}
    with pytest.raises(RecipeError, match="early_stopping_patience"):
        search_space(patience, SweepRequest("quickstart").recipe)
    both = {"training.eval_steps": "2,4", **patience}
    assert len(search_space(both, SweepRequest("quickstart").recipe)) == 2
    with pytest.raises(RecipeError, match="no held-out rows"):
        search_space(both, request.recipe)


def test_a_file_that_is_edited_meanwhile_changes_no_trial(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = yaml.safe_dump(Recipe.load("quickstart").model_dump(mode="json", exclude_unset=True))
    path.write_text(text)
    request = SweepRequest(str(path))
    before = request.recipe(["adapter.rank=4"])
    path.write_text("not a recipe")
    assert request.recipe(["adapter.rank=4"]) == before


def test_every_value_is_tried_in_the_recipe(tiny_recipe: Recipe) -> None:
    tried: list[str] = []

    def with_values(assignments: Sequence[str]) -> Recipe:
        tried.extend(assignments)
        if "adapter.rank=0" in assignments:
            raise RecipeError("adapter.rank: too small (got 0)")
        return tiny_recipe

    search_space({"training.learning_rate": "1e-4..1e-3", "adapter.rank": "4,8"}, with_values)
    assert tried == [
        "training.learning_rate=0.0001",
        "training.learning_rate=0.001",
        "training.learning_rate=0.0004437",
        "adapter.rank=4",
        "adapter.rank=8",
    ]
    with pytest.raises(RecipeError, match="too small"):
        search_space({"adapter.rank": "0,8"}, with_values)
    assert field_value(tiny_recipe, "adapter.rank") == 4
    assert field_value(tiny_recipe, "data.train.0.limit") == 16
    assert field_value(tiny_recipe, "retention.kl.weight") is None


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1.5h", 5400), ("30m", 1800), ("1d", 86400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"over": {}}, "at least 1"),
        ({"over": {"seed": "1,2"}}, "seed is not searched"),
        ({"over": {"evaluation.shots": "1,2"}}, "evaluation.shots is not searched"),
        ({"over": {"adapter.rank": "1,2"}, "budget": "2"}, "is no duration"),
        ({"over": {"adapter.rank": "1,2"}, "budget": "0h"}, "is no duration"),
        ({"over": {"adapter.rank": "1,2"}, "trials": 1}, "greater than or equal to 2"),
    ],
)
def test_what_is_no_search_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SweepSpec.model_validate(fields)
