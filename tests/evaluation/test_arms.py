"""The arms of an evaluation that are models."""

from pathlib import Path

import pytest
import yaml

from lora_kit import pipeline
from lora_kit.adapter.attach import attach
from lora_kit.adapter.initial_factors import InitialRows, initialise
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import EvaluationError
from lora_kit.training.scratch import Blank, reinitialised
from tests.adapter.test_peft_methods import tiny_on


@pytest.mark.parametrize(
    "spec",
    [
        AdapterSpec(rank=4, options={"init_lora_weights": "loftq"}),
        AdapterSpec(
            method="prompt_tuning",
            options={"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "Add the numbers."},
        ),
    ],
)
def test_from_scratch_begins_what_reads_the_files_of_the_weights(
    tiny: Path, spec: AdapterSpec
) -> None:
    with reinitialised(Blank.of(tiny_on(tiny, "nf4")), 0) as backbone:
        model = attach(backbone, spec, 0)
        initialise(model, backbone, spec, InitialRows(()), 0)
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("arm", ["fewshot", "retrieval", "scratch"])
def test_what_learns_from_the_rows_learns_from_those_of_the_training(
    tiny: Path, tmp_path: Path, arm: str
) -> None:
    rows, suite = tmp_path / "rows.jsonl", tmp_path / "suite.yaml"
    lines = [f'{{"prompt": "{n} + {n}", "completion": "{2 * n}"}}\n' for n in range(8)]
    rows.write_text("".join(lines[:6]))
    items = tmp_path / "items.jsonl"
    items.write_text("".join(lines[6:]))
    task = {"kind": "generation", "metric": "chrf", "max_new_tokens": 2}
    named = {"name": "sums", "source": str(items)} | task
    suite.write_text(yaml.safe_dump({"name": "sums", "role": "gain", "tasks": [named]}))
    recipe = Recipe.model_validate(
        {
            "name": "arms",
            "backbone": {"model": str(tiny), "quantization": "none", "dtype": "float32"},
            "data": {"train": [{"source": str(rows)}], "max_length": 64},
            "training": {"batch_size": 2, "epochs": 1.0},
            "evaluation": {"suites": [str(suite)], "arms": ["base", "adapter"]},
        }
    )
    pipeline.train(recipe, tmp_path / "run")
    rows.write_text("".join(lines[:5]) + '{"prompt": "5 + 5", "completion": "55"}\n')
    with pytest.raises(EvaluationError, match=rf"arm {arm}: the rows of data\.train differ"):
        pipeline.evaluate(tmp_path / "run", arms=[arm])
    rows.write_text("".join(lines[:6]))
    assert arm in {e.arm for e in pipeline.evaluate(tmp_path / "run", arms=[arm]).read_entries()}
