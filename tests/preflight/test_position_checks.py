"""Sequences longer than the learned positions of a backbone are refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_kit.pipeline import train
from lora_kit.preflight.make_plan import make_plan
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import DataError, LoraKitError, RecipeError, TrainingError
from tests.narrow import write_narrow, write_rows

PLACES = 24
ENOUGH = {"text": "The river ends in the sea."}
TOO_LONG = {"text": "The river flows on and on. " * 10}


@pytest.fixture(scope="module")
def narrow(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_narrow(tmp_path_factory.mktemp("narrow"), smollm, PLACES)


@pytest.fixture
def short(narrow: Path, tmp_path: Path) -> dict[str, Any]:
    """Return a recipe of texts that fit."""
    texts = write_rows(tmp_path / "texts.jsonl", [ENOUGH] * 4)
    task = {"name": "prose", "kind": "loss", "source": "python-reference", "limit": 8}
    suite = {"name": "prose", "role": "gain", "tasks": [task | {"max_length": 16}]}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    return {
        "name": "narrow",
        "backbone": {"model": str(narrow), "quantization": "none", "dtype": "float32"},
        "adapter": {"rank": 2},
        "data": {
            "train": [{"source": str(texts)}],
            "max_length": 128,
            "audit": {"duplicates": 1},
        },
        "training": {"batch_size": 2},
        "evaluation": {"suites": [str(tmp_path / "suite.yaml")]},
    }


def refused(document: dict[str, Any], kind: type[LoraKitError], message: str, run: Path) -> None:
    """Assert that plan and training refuse the recipe with the same message."""
    recipe = Recipe.model_validate(document)
    with pytest.raises(kind, match=message):
        make_plan(recipe)
    with pytest.raises(kind, match=message):
        train(recipe, run)
    assert not run.exists()


def test_long_held_out_rows_are_refused(short: dict[str, Any], tmp_path: Path) -> None:
    held_out = write_rows(tmp_path / "held-out.jsonl", [ENOUGH, TOO_LONG])
    short["data"]["validation"] = [{"source": str(held_out)}]
    message = r"data\.validation: .*held-out\.jsonl:2 needs \d+ positions \(available: 24\)"
    refused(short, DataError, message, tmp_path / "run")


@pytest.mark.parametrize("kind", ["kl", "early_stopping", "ewc"])
def test_long_retention_texts_are_refused(short: dict[str, Any], tmp_path: Path, kind: str) -> None:
    texts = write_rows(tmp_path / "kept.jsonl", [TOO_LONG] * 8)
    rows = {} if kind == "kl" else {"rows": 8}
    short["retention"] = {kind: {"source": str(texts), **rows}}
    field = rf"retention\.{kind}\.length"
    message = rf"{field}: 128: .*kept\.jsonl:1 needs \d+ positions.*Fix: lower {field}$"
    refused(short, DataError, message, tmp_path / "run")
    short["retention"][kind]["length"] = PLACES
    assert make_plan(Recipe.model_validate(short)).on_backbone is not None


def test_examples_longer_than_the_teachers_positions_are_refused(
    short: dict[str, Any], narrow: Path, smollm: Path, tmp_path: Path
) -> None:
    short["backbone"]["model"] = str(write_narrow(tmp_path / "wide", smollm, 128))
    rows = write_rows(tmp_path / "rows.jsonl", [ENOUGH, ENOUGH, TOO_LONG])
    short["data"]["train"] = [{"source": str(rows)}]
    teacher = {"model": str(narrow), "quantization": "none", "dtype": "float32"}
    short["training"]["distillation"] = {"teacher": teacher}
    message = (
        r"training\.distillation\.teacher: .*rows\.jsonl:3 needs \d+ positions \(available: 24\)"
    )
    refused(short, TrainingError, message, tmp_path / "run")
    short["data"]["max_length"] = PLACES
    assert make_plan(Recipe.model_validate(short)).on_backbone is not None


def test_long_answers_after_the_teachers_prompt_are_refused(
    short: dict[str, Any], smollm: Path, tmp_path: Path
) -> None:
    """The teacher's prompt holds the completion as well, and is the longer one."""
    short["backbone"]["model"] = str(write_narrow(tmp_path / "wide", smollm, 66))
    asked = [{"prompt": f"{n} plus {n}?", "completion": "It is " * n} for n in range(1, 5)]
    rows = write_rows(tmp_path / "asked.jsonl", asked)
    short["data"] |= {"train": [{"source": str(rows)}], "max_length": 32}
    short["training"] |= {"objective": "sdft", "learning_rate": 1e-3}
    short["sdft"] = {"max_new_tokens": 32}
    message = r"sdft\.max_new_tokens: 32: .*asked\.jsonl:2: the teacher's prompt .* needs \d+"
    refused(short, RecipeError, message, tmp_path / "refused")
    short["sdft"]["max_new_tokens"] = 8
    train(Recipe.model_validate(short), tmp_path / "run")


def test_long_sampled_answers_are_refused(short: dict[str, Any], tmp_path: Path) -> None:
    asked = [{"prompt": f"{n} plus {n}?", "completion": f"{2 * n}"} for n in range(1, 5)]
    rows = write_rows(tmp_path / "asked.jsonl", asked)
    short["data"]["train"] = [{"source": str(rows)}]
    short["training"] |= {"objective": "grpo", "learning_rate": 1e-3}
    short["grpo"] = {"rewards": ["chrf"], "num_generations": 2, "max_new_tokens": 40}
    message = (
        r"grpo\.max_new_tokens: 40: .*asked\.jsonl:1: .*needs \d+ positions \(available: \d+\)"
    )
    refused(short, RecipeError, message, tmp_path / "refused")
    with pytest.raises(RecipeError) as caught:
        make_plan(Recipe.model_validate(short))
    [numbers] = re.findall(r"needs (\d+) positions \(available: (\d+)\)", str(caught.value))
    needed, available = map(int, numbers)
    # The last generated token is an input too when the answer is scored.
    tokens = 40 - (needed - available)
    assert tokens > 8
    short["grpo"]["max_new_tokens"] = tokens + 1
    with pytest.raises(RecipeError, match=r"grpo\.max_new_tokens"):
        make_plan(Recipe.model_validate(short))
    short["grpo"]["max_new_tokens"] = tokens
    train(Recipe.model_validate(short), tmp_path / "run")
