"""GRPO with a reward model from an earlier run."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from lora_kit import pipeline
from lora_kit.adapter.saved import adapter_sha256
from lora_kit.backbone.heads import pad_right
from lora_kit.data.rows import Message, Row
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.session import open_run
from lora_kit.runtime.errors import DataError, RecipeError
from lora_kit.training.preferences.rewards import reward_functions
from tests.rewarding import reward_recipe, trainer_inputs


def rewarded_recipe(model: Path, folder: Path, *rewards: str) -> Recipe:
    rows = folder / "asked.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"prompt": f"What is {n} plus {n + 3}?", "completion": f"{2 * n + 3}"})
            + "\n"
            for n in range(8)
        )
    )
    return Recipe.model_validate(
        {
            "name": "rewarded",
            "backbone": {"model": str(model), "quantization": "none", "dtype": "float32"},
            "adapter": {"rank": 4, "alpha": 8},
            "data": {"train": [{"source": str(rows)}], "max_length": 128},
            "training": {"objective": "grpo", "batch_size": 4, "learning_rate": 1e-2},
            "grpo": {"rewards": list(rewards), "num_generations": 2, "max_new_tokens": 4},
            "evaluation": {"suites": ["sums"]},
        }
    )


def test_a_reward_model_rewards_the_answers_of_a_policy(
    tiny: Path, reward_run: Path, tmp_path: Path
) -> None:
    recipe = rewarded_recipe(tiny, tmp_path, f"run:{reward_run}", "chrf")
    assert recipe.grpo is not None
    by_model, _ = reward_functions(recipe.grpo)
    prompts = [[{"role": "user", "content": "What is 1 plus 4?"}]] * 3
    answers = ["It is 5.", "Who knows about 1?", "It <|im_end|>is 5."]
    found = by_model(prompts, [[{"role": "assistant", "content": text}] for text in answers])
    unit = trainer_inputs(reward_recipe(tiny, tmp_path), tmp_path).data.units[1]
    session = open_run(reward_run)
    pad = session.backbone.tokenizer.pad_token_id
    with torch.no_grad():
        expected = [
            float(session.model(**pad_right([example.input_ids], pad)).logits)
            for example in unit.examples
        ]
    assert found[:2] == pytest.approx(expected, abs=1e-5)
    assert found[0] == pytest.approx(found[2], abs=1e-5)
    assert found[0] > found[1]
    odd = [[{"role": "assistant", "content": text}] for text in ("", " ", "<|im_<|im_end|>end|>")]
    silent = by_model(prompts, odd)
    assert silent[0] is not None
    assert math.isfinite(silent[0])
    assert silent == [silent[0]] * 3
    pipeline.train(recipe, tmp_path / "policy")
    record = json.loads((tmp_path / "policy" / "run.json").read_text())
    model = f"the reward model of grpo.rewards: run:{reward_run}"
    assert record["inputs"][model] == adapter_sha256(reward_run / "adapter")
    record["inputs"][model] = "another"
    (tmp_path / "policy" / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        RecipeError, match=r"training changed \(the reward model of grpo\.rewards: run:"
    ):
        pipeline.train(recipe, tmp_path / "policy", resume=True)
    steps = [json.loads(line) for line in (tmp_path / "policy" / "metrics.jsonl").open()]
    assert len(steps) == 2
    assert all(math.isfinite(step["reward"]) for step in steps)


def test_reward_models_with_equal_folder_names_get_full_names(
    tiny: Path, reward_run: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "other" / reward_run.name
    shutil.copytree(reward_run, elsewhere)
    recipe = rewarded_recipe(tiny, tmp_path, f"run:{reward_run}", f"run:{elsewhere}", "chrf")
    assert recipe.grpo is not None
    names = [reward.__name__ for reward in reward_functions(recipe.grpo)]
    assert names == [f"run:{reward_run}", f"run:{elsewhere}", "chrf"]


def test_a_prompt_that_a_reward_model_cannot_encode_is_refused_before_the_first_step(
    tiny: Path, reward_run: Path, tmp_path: Path
) -> None:
    recipe = rewarded_recipe(tiny, tmp_path, f"run:{reward_run}")
    assert recipe.grpo is not None
    odd = Row("rows.jsonl:3", "", (Message("user", "a <|im_end|>"), Message("assistant", "b")))
    with pytest.raises(DataError, match=r"grpo\.rewards: .*rows\.jsonl:3: .*control token"):
        reward_functions(recipe.grpo, [odd])


def test_runs_that_are_not_reward_models_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="run: names no run directory"):
        rewarded_recipe(tiny, tmp_path, "run:")
    recipe = rewarded_recipe(tiny, tmp_path, f"run:{tmp_path}")
    with pytest.raises(RecipeError, match="no run with an adapter in"):
        pipeline.train(recipe, tmp_path / "policy")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"task_type": "CAUSAL_LM"}')
    with pytest.raises(RecipeError, match=r"not a reward model .* Fix: name a run of training"):
        pipeline.train(recipe, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()
