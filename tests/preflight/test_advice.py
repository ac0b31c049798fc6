"""Advice in words: the method, its reason with a source, and runs that count more."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lora_kit import pipeline
from lora_kit.data.dataset import open_rows
from lora_kit.preflight.advice import (
    Situation,
    advise,
    runs_on_the_same_rows,
    tokens_per_word,
)
from lora_kit.preflight.make_plan import make_plan
from lora_kit.preflight.show_advice import show_advice
from lora_kit.recipe.recipe import Recipe
from tests.classifying import classes_recipe

SMALL, MIDDLE, LARGE = 23_000_000, 135_000_000, 8_000_000_000
CLASSES = Situation("classification", 346, {"a": 50, "b": 60}, SMALL, False, 1.3)


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({}, "full"),
        ({"classes": {"a": 14, "b": 300}}, "head"),
        ({"parameters": MIDDLE}, "lora"),
        ({"parameters": LARGE}, "head"),
        ({"parameters": LARGE, "on_gpu": True}, "lora"),
        ({"objective": "regression", "classes": {}, "examples": 10}, "head"),
        ({"objective": "sft", "classes": {}, "parameters": MIDDLE}, "lora"),
        ({"objective": "text", "classes": {}, "examples": 200_000, "on_gpu": True}, "full"),
    ],
)
def test_what_to_train(changes: dict[str, Any], method: str) -> None:
    advice = advise(Recipe.load("classify"), replace(CLASSES, **changes))
    assert advice.method == method
    assert all(one.text.endswith(".") for one in advice.reasons)
    # A rule of thumb without a source is told by what it costs alone.
    assert advice.reasons[0].source or "read once" in advice.reasons[0].text


def test_unlike_texts_and_unlike_classes_have_sentences_of_their_own() -> None:
    recipe = Recipe.load("classify", ["classification.class_weights=none"])
    assert len(advise(recipe, CLASSES).reasons) == 1
    unlike = advise(recipe, replace(CLASSES, tokens_per_word=3.0))
    assert "3.0 tokens a word" in unlike.reasons[1].text
    unbalanced = replace(CLASSES, classes={"a": 20, "b": 100})
    assert "a has 20 rows" in advise(recipe, unbalanced).reasons[1].text
    weighed = Recipe.load("classify", ["classification.class_weights=balanced"])
    assert len(advise(weighed, unbalanced).reasons) == 1


def test_words_of_prose_have_few_tokens_and_those_of_code_many(tokenizer: Any) -> None:
    prose = ["The two friends walked along the river and talked about the weather."]
    code = ["def f(a,b=None):return[x**2for(x)in(a or[])if(x!=b)]"]
    assert 1.0 < tokens_per_word(prose, tokenizer) < 1.5
    assert tokens_per_word(code, tokenizer) > 5
    assert tokens_per_word([], tokenizer) == 0.0


def test_a_plan_advises_and_a_judged_run_of_the_same_rows_counts_more(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = classes_recipe(tiny_encoder, tmp_path, adapter={"method": "head"})
    plan = make_plan(recipe)
    assert plan.on_backbone is not None
    advice = plan.on_backbone.advice
    assert (advice.method, advice.own, advice.measured) == ("head", "head", ())
    assert plan.to_dict()["advice"]["reasons"][0]["source"].startswith("Kumar")
    said = _shown(advice, recipe)
    assert "what to train: head (as this recipe does)" in said
    assert "Add probe and retrieval and fewshot" not in said
    assert "lora-kit sweep RECIPE --over adapter.method=head,lora" in said
    trained = pipeline.train(recipe, Path("runs/kinds"))
    rows = open_rows(recipe.data, recipe.seed, "classification")
    assert runs_on_the_same_rows(Path("runs"), rows, "classification") == []  # not judged
    decision = pipeline.evaluate(trained.session, stopping="none").verdict.decision
    measured = runs_on_the_same_rows(Path("runs"), rows, "classification")
    assert measured == [("runs/kinds", "head", decision)]
    assert runs_on_the_same_rows(Path("runs"), rows[:5], "classification") == []
    again = make_plan(recipe).on_backbone
    assert again is not None
    assert f"Measured on the same rows: head, {decision} (runs/kinds)" in _shown(
        again.advice, recipe
    )


def _shown(advice: Any, recipe: Recipe) -> str:
    console = Console(file=io.StringIO(), width=400)
    show_advice(advice, recipe, console)
    text: str = console.file.getvalue()
    return text
