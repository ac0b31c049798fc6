"""Rules between fields: all at once, each with its line, and only where both fields are valid."""

import inspect
from collections import Counter
from pathlib import Path

import pytest

from lora_kit.recipe import conflicts
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.rules import RULES
from lora_kit.runtime.errors import RecipeError

CONFLICTS = """\
name: mine
backbone:
  model: smollm2-135m-instruct
  quantization: none
data:
  train:
    - {source: stdlib-docstrings}
training:
  objective: dpo
  batch_size: 6
  micro_batch_size: 4
  decay_ratio: 0.5
  keep_best: true
  loraplus_lr_ratio: 16
retention:
  ewc: {}
merge:
  base: both
"""


def problems(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path, overrides)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_every_conflict_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    found = problems(tmp_path, CONFLICTS)
    for start in (
        "line 11, training.micro_batch_size: does not divide",
        "line 12, training.decay_ratio: is read by lr_scheduler wsd only",
        "line 13, training.keep_best: is decided by the validation loss",
        "line 14, training.loraplus_lr_ratio: works with the objectives sft, text, ",
        "line 16, retention.ewc: works with the objectives sft and text only",
        "line 18, merge.base: backbone.quantization is none",
    ):
        assert any(line.startswith(start) for line in found), start
    assert all(". Fix: " in line for line in found)


def test_conflicts_are_told_beside_invalid_fields(tmp_path: Path) -> None:
    found = problems(tmp_path, CONFLICTS.replace("objective: dpo", "epochs: many\n  wrong: 1"))
    assert any(line.startswith("line 9, training.epochs: must be a number") for line in found)
    assert any(line.startswith("line 10, training.wrong: unknown key") for line in found)
    assert any(line.startswith("line 12, training.micro_batch_size: does not") for line in found)


def test_a_conflict_with_an_invalid_field_is_not_told(tmp_path: Path) -> None:
    found = problems(tmp_path, CONFLICTS.replace("objective: dpo", "objective: dpoo"))
    assert any("training.objective: must be" in line for line in found)
    # With the default in its place, the objective would seem to be sft.
    assert not any("training.objective is" in line for line in found)


def test_a_conflict_of_an_override_names_the_override(tmp_path: Path) -> None:
    plain = "\n".join(CONFLICTS.splitlines()[:7])
    assert problems(tmp_path, plain, "training.decay_ratio=0.5") == [
        "--set training.decay_ratio: is read by lr_scheduler wsd only, and lr_scheduler is cosine "
        "(got 0.5). Fix: remove it, or set training.lr_scheduler: wsd"
    ]


def test_a_default_that_conflicts_is_told_at_the_field_that_was_given(tmp_path: Path) -> None:
    plain = "\n".join(CONFLICTS.splitlines()[:3] + CONFLICTS.splitlines()[4:7])
    [told] = problems(tmp_path, plain + "\nadapter: {method: loha}\n")
    assert told.startswith("line 7, adapter.method: loha needs unquantized weights")


def test_classes_named_by_digits_can_be_set(tmp_path: Path) -> None:
    recipe = Recipe.load("classify", ["classification={}", "classification.class_weights.1=2"])
    assert recipe.classification is not None
    assert recipe.classification.class_weights == {"1": 2.0}
    written = tmp_path / "recipe.yaml"
    written.write_text(recipe.to_yaml().replace("'1': 2.0", "1: 2.0"))
    both = Recipe.load(written, ["classification.class_weights.1=3"])
    assert both.classification is not None
    assert both.classification.class_weights == {"1": 3.0}


def test_spaces_in_names_of_columns_stay(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: x\nbackbone: {model: m}\n"
        "data: {train: [{source: a.csv, columns: {prompt: ' question ', completion: b}}]}\n"
    )
    assert Recipe.load(path).data.train[0].columns["prompt"] == " question "


def test_every_rule_is_in_the_list_once() -> None:
    modules = [module for _, module in inspect.getmembers(conflicts, inspect.ismodule)]
    written = {
        function
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isgeneratorfunction)
        if function.__module__ == module.__name__
    }
    assert Counter(RULES) == Counter(written)
