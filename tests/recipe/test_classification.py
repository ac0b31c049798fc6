"""Fields that a recipe with a head may have, and those that are refused."""

from typing import Any

import pytest

from lora_kit.data.labelled import count_classes
from lora_kit.data.rows import Row
from lora_kit.recipe.classification import ClassificationSpec
from lora_kit.recipe.document import Document
from lora_kit.recipe.load import validate
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import DataError, RecipeError

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
        (
            {"data": {"replay": {"source": "python-reference"}}},
            r"data\.replay: replayed rows have no class",
        ),
        ({"data": {"packing": True}}, r"data\.packing: a classifier reads one text a row"),
        ({"data": {"train_on": "all"}}, r"data\.train_on: a classifier trains on the row's class"),
        ({"retention": {"kl": {}}}, r"retention\.kl: preserves a language model's outputs"),
        ({"retention": {"token_masking": {}}}, r"retention\.token_masking"),
        ({"retention": {"ewc": {}}}, r"retention\.ewc"),
        ({"retention": {"early_stopping": {}}}, r"retention\.early_stopping"),
        (
            {"evaluation": {"suites": ["areas"], "arms": ["base", "adapter", "fewshot"]}},
            r"arms: .*classification has no such arm \(got fewshot\).*base, adapter, retrieval",
        ),
        ({"merge": {"base": "original"}}, r"merge: a head cannot be merged"),
        ({"adapter": {"options": {"modules_to_save": ["x"]}}}, r"options\.modules_to_save"),
        (
            HEAD | {"training": {"layerwise_lr_decay": 0.9}},
            r"training\.layerwise_lr_decay: with adapter\.method",
        ),
        (
            HEAD | {"training": {"gradual_unfreezing_steps": 2}},
            r"training\.gradual_unfreezing_steps",
        ),
        (HEAD | {"training": {"max_tokens_per_batch": 64}}, r"training\.max_tokens_per_batch"),
        (HEAD | {"training": {"micro_batch_size": 2}}, r"training\.micro_batch_size"),
        (HEAD | {"training": {"gradient_checkpointing": True}}, "gradient_checkpointing"),
        ({"training": {"objective": "sft"}, "classification": {}}, "classification: is read by"),
        (
            HEAD | {"training": {"objective": "sft"}},
            r"adapter\.method: head needs objective classification",
        ),
        ({"classification": {"labels": ["a"]}}, r"classification\.labels"),
        ({"classification": {"labels": ["a", "b", "a"]}}, "names a twice"),
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
        checked(data={"packing": True}, retention={"early_stopping": {}})
    assert "data.packing" in str(told.value)
    assert "retention.early_stopping" in str(told.value)


def test_a_recipe_of_classes_survives_being_written(tmp_path: Any) -> None:
    recipe = checked(classification={"class_weights": {"files": 2}, "focal_gamma": 1.5}, **HEAD)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert Recipe.load(path) == recipe


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"labels": ["a", "b"]}, r"row 4: .*\(got 'c'; classification\.labels has a, b\)"),
        ({"labels": ["a", "b", "c", "d"]}, r"a class has no training row \(got 'd'\)"),
        ({"class_weights": {"d": 2.0}}, r"unknown class \(got 'd'\)\. Fix: use a, b, c"),
    ],
)
def test_classes_that_the_rows_do_not_have_are_refused(spec: Any, message: str) -> None:
    rows = [Row(f"row {n}", "", label=label) for n, label in enumerate("aabbc")]
    with pytest.raises(DataError, match=message):
        count_classes(rows, ClassificationSpec.model_validate(spec))


def test_rows_without_a_class_or_of_one_only_are_refused() -> None:
    with pytest.raises(DataError, match=r"row 1: .*needs a class in each row \(got none\)"):
        count_classes([Row("row 0", "", label="a"), Row("row 1", "")], ClassificationSpec())
    with pytest.raises(DataError, match=r"at least two classes \(got only 'a'\)"):
        count_classes([Row("row 0", "", label="a")], ClassificationSpec())


def test_classes_are_sorted_unless_they_are_named() -> None:
    rows = [Row("", "", label=label) for label in "bba"]
    assert list(count_classes(rows, ClassificationSpec()).items()) == [("a", 1), ("b", 2)]
    assert list(count_classes(rows, ClassificationSpec(labels=["b", "a"]))) == ["b", "a"]
