"""What a recipe with a head can ask for, and what it cannot."""

from typing import Any

import pytest

from lora_kit.classification_spec import ClassificationSpec
from lora_kit.data.labelled import rows_by_class
from lora_kit.data.rows import Row
from lora_kit.errors import DataError, RecipeError
from lora_kit.recipe import Recipe
from lora_kit.schema import Document, validate

HEAD = {"adapter": {"method": "head"}}


def checked(**changes: Any) -> Recipe:
    document: dict[str, Any] = {
        "name": "x",
        "backbone": {"model": "all-minilm-l6-v2", "quantization": "none"},
        "data": {"train": [{"source": "stdlib-areas"}]},
        "training": {"objective": "classification"},
        "evaluation": {"suites": ["areas"]},
    }
    for section, fields in changes.items():
        document[section] = document.get(section, {}) | fields
    return validate(Recipe, Document("recipe", document))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"replay": {"source": "python-reference"}}}, r"data\.replay: a head learns"),
        ({"data": {"packing": True}}, r"data\.packing: a head reads one text a row"),
        ({"data": {"labels": "all"}}, r"data\.labels: says what is learned of a conversation"),
        ({"retention": {"anchor": {}}}, r"retention\.anchor: holds what the base says"),
        ({"retention": {"mask": {}}}, r"retention\.mask"),
        ({"retention": {"consolidation": {}}}, r"retention\.consolidation"),
        ({"retention": {"budget": {}}}, r"retention\.budget"),
        (
            {"evaluation": {"suites": ["areas"], "arms": ["base", "adapter", "fewshot"]}},
            r"evaluation\.arms: fewshot: not with a head; possible: base, adapter, retrieval",
        ),
        ({"merge": {"base": "original"}}, r"merge: a head cannot be merged"),
        ({"adapter": {"options": {"modules_to_save": ["x"]}}}, r"options\.modules_to_save"),
        (HEAD | {"training": {"layer_decay": 0.9}}, r"training\.layer_decay: with adapter\.method"),
        (HEAD | {"training": {"unfreeze_steps": 2}}, r"training\.unfreeze_steps"),
        (HEAD | {"training": {"batch_tokens": 64}}, r"training\.batch_tokens"),
        (HEAD | {"training": {"micro_batch_size": 2}}, r"training\.micro_batch_size"),
        (HEAD | {"training": {"gradient_checkpointing": True}}, "gradient_checkpointing"),
        ({"training": {"objective": "sft"}, "classification": {}}, "classification: is read by"),
        (HEAD | {"training": {"objective": "sft"}}, r"adapter\.method: head: there is a head"),
        ({"classification": {"labels": ["a"]}}, r"classification\.labels"),
        ({"classification": {"labels": ["a", "b", "a"]}}, "no class twice"),
        ({"classification": {"focal_gamma": -1}}, r"classification\.focal_gamma"),
        ({"classification": {"class_weights": {"a": 0}}}, r"classification\.class_weights"),
        ({"classification": {"class_weights": "rare"}}, r"classification\.class_weights"),
    ],
)
def test_what_does_not_go_with_a_head_is_refused(changes: dict[str, Any], message: str) -> None:
    if changes.get("training", {}).get("objective") != "sft":
        changes = changes | {
            "training": {"objective": "classification"} | changes.get("training", {})
        }
    with pytest.raises(RecipeError, match=message):
        checked(**changes)


def test_all_reasons_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as told:
        checked(data={"packing": True}, retention={"budget": {}})
    assert "data.packing" in str(told.value)
    assert "retention.budget" in str(told.value)


def test_a_recipe_of_classes_survives_being_written(tmp_path: Any) -> None:
    recipe = checked(classification={"class_weights": {"files": 2}, "focal_gamma": 1.5}, **HEAD)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert Recipe.load(path) == recipe


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"labels": ["a", "b"]}, r"row 4: the class 'c' is not in classification\.labels: a, b"),
        ({"labels": ["a", "b", "c", "d"]}, "no training row is of the class 'd'"),
        ({"class_weights": {"d": 2.0}}, "'d' is no class; the classes are a, b, c"),
    ],
)
def test_classes_that_the_rows_do_not_have_are_refused(spec: Any, message: str) -> None:
    rows = [Row(f"row {n}", "", label=label) for n, label in enumerate("aabbc")]
    with pytest.raises(DataError, match=message):
        rows_by_class(rows, ClassificationSpec.model_validate(spec))


def test_rows_without_a_class_or_of_one_only_are_refused() -> None:
    with pytest.raises(DataError, match="row 1: has no class"):
        rows_by_class([Row("row 0", "", label="a"), Row("row 1", "")], ClassificationSpec())
    with pytest.raises(DataError, match="every row is of the class 'a'"):
        rows_by_class([Row("row 0", "", label="a")], ClassificationSpec())


def test_classes_are_sorted_unless_they_are_named() -> None:
    rows = [Row("", "", label=label) for label in "bba"]
    assert list(rows_by_class(rows, ClassificationSpec()).items()) == [("a", 1), ("b", 2)]
    assert list(rows_by_class(rows, ClassificationSpec(labels=["b", "a"]))) == ["b", "a"]
