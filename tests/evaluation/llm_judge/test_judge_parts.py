"""Judges that are refused, labels that are read, and the choice in a reply."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_kit.evaluation.llm_judge.labelled_pairs import read_labelled_pairs
from lora_kit.evaluation.llm_judge.prompts import read_choice
from lora_kit.evaluation.suite import Suite
from lora_kit.pipeline.training import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sections import EvaluationSpec
from lora_kit.runtime.errors import LoraKitError, RecipeError

OTHER = {"name": "prose", "kind": "loss", "source": "python-reference", "limit": 3}


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ({}, r"not calibrated has no part in the verdict.*in_verdict: false"),
        ({"judge": {}}, "a judge is one model"),
        ({"judge": {"model": "m", "url": "http://x"}}, "a judge is one model"),
        ({"judge": {"url": "http://x"}}, "add `served_model`"),
        ({"judge": {"model": "m", "api_key_env": "KEY"}}, "`api_key_env` has no effect without"),
        ({"judge": None}, "a judge task needs a `judge`"),
        ({"kind": "loss"}, "a loss task takes no `judge`"),
        ({"in_verdict": False, "samples": 3}, "takes neither `samples`"),
        ({"in_verdict": False, "effect": 0.6}, "shares of the items from 0.5"),
    ],
)
def test_what_a_judge_cannot_be_is_refused(task: dict[str, Any], reason: str) -> None:
    asked = {"name": "liked", "kind": "judge", "source": "x.jsonl", "judge": {"model": "m"}} | task
    suite = {"name": "s", "role": "gain", "tasks": [OTHER, asked]}
    with pytest.raises(ValueError, match=reason):
        Suite.model_validate(suite)


@pytest.mark.parametrize(
    ("judge", "reason"),
    [
        ({"model": "no/such/folder"}, r"judge.model: .*no/such/folder"),
        ({"url": "localhost:8000", "served_model": "m"}, r"judge.url: not the address"),
        (
            {"url": "http://localhost:9/v1", "served_model": "m", "api_key_env": "NO_SUCH"},
            r"http://localhost:9: its key .*\(got NO_SUCH\)",
        ),
        (
            {"model": "smollm2-135m-instruct", "calibration": "no.jsonl"},
            r"judge.calibration: .*no.jsonl",
        ),
    ],
)
def test_a_judge_that_is_not_there_is_refused_before_a_training(
    judge: dict[str, Any], reason: str, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello?"}\n')
    asked = {"name": "liked", "kind": "judge", "source": str(tmp_path / "prompts.jsonl")}
    asked |= {"judge": judge, "in_verdict": "calibration" in judge}
    suite = {"name": "s", "role": "gain", "tasks": [OTHER, asked]}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    evaluation = EvaluationSpec(suites=[str(tmp_path / "suite.yaml")])
    recipe = tiny_recipe.model_copy(update={"evaluation": evaluation})
    with pytest.raises(LoraKitError, match=reason):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_suite_of_judges_alone_that_decide_nothing_is_refused() -> None:
    asked = {"name": "liked", "kind": "judge", "source": "x.jsonl", "judge": {"model": "m"}}
    suite = {"name": "s", "role": "gain", "tasks": [asked | {"in_verdict": False}]}
    with pytest.raises(ValueError, match="no task is a part of the verdict"):
        Suite.model_validate(suite)


def test_an_accuracy_that_was_not_measured_is_refused(tmp_path: Path) -> None:
    accuracy = {"sensitivity": 1, "sensitive_pairs": 99, "specificity": 1, "specific_pairs": 99}
    judge = {"model": "m", "accuracy": accuracy | {"symmetric": True}}
    asked = {"name": "liked", "kind": "judge", "source": "x.jsonl", "judge": judge}
    suite = {"name": "s", "role": "gain", "tasks": [OTHER, asked | {"in_verdict": False}]}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    with pytest.raises(RecipeError, match=r"judge.accuracy: is measured, not given"):
        Suite.load(tmp_path / "suite.yaml")


def test_ties_of_people_say_nothing_of_the_judge(tmp_path: Path) -> None:
    decided = [
        {"prompt": "p", "first": f"a{n}", "second": "b", "preferred": "first"} for n in range(10)
    ]
    ties = [{**row, "preferred": "tie"} for row in decided]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(r) + "\n" for r in decided + ties))
    labels = [one.label for one in read_labelled_pairs(str(tmp_path / "labels.jsonl"), "t")]
    assert sorted(labels) == [0.5] * 10 + [1.0] * 10


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("A", 1.0),
        ("First, I compare.\nThe answer is B.", -1.0),
        ("<think>A is long</think>\nTIE", 0.0),
        ("<think>\nLet me compare.\nA good answer would", None),
        ("A or B", None),
        ("neither", None),
    ],
)
def test_the_last_word_of_a_reply_is_the_choice(reply: str, choice: float | None) -> None:
    assert read_choice(reply) == choice
