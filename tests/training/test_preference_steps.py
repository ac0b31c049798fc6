"""Steps of preference training: gradients, logged metrics, and stopping."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from lora_kit import pipeline
from lora_kit.data.tokenization import end_of_turn_id
from lora_kit.modeling.likelihood import supervised_nll
from lora_kit.modeling.model_inputs import pad_examples
from lora_kit.recipe.recipe import Recipe
from lora_kit.training.preferences.objectives import objective_trainer
from lora_kit.training.preferences.unit_batches import (
    UnitPass,
    dpo_batch,
    kto_batch,
    split_into_passes,
)
from tests.preferring import OBJECTIVES, perturb_adapter, recipe_of, row, trainer_inputs
from tests.training.cut import losses


def test_the_gradient_does_not_depend_on_the_split_into_passes(tiny: Path, tmp_path: Path) -> None:
    gradients = []
    for micro in (1, 2, 4):
        recipe = recipe_of(tiny, tmp_path, "dpo", micro_batch_size=micro)
        trainer: Any = objective_trainer(trainer_inputs(recipe, tmp_path / "checkpoints"), [])
        perturb_adapter(trainer.model)
        step = {"units": trainer.data_collator.keywords["units"][:3], "rows": [0, 1, 2]}
        loss = trainer.training_step(trainer.model, step)
        found = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        gradients.append((loss, torch.cat([g.flatten() for g in found])))
    for loss, gradient in gradients[1:]:
        assert loss == pytest.approx(float(gradients[0][0]), abs=1e-5)
        assert torch.allclose(gradient, gradients[0][1], atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_both_answers_have_the_prompt_of_sft_and_an_end_of_turn(
    tiny: Path, tmp_path: Path, objective: str
) -> None:
    inputs = trainer_inputs(recipe_of(tiny, tmp_path, objective), tmp_path)
    tokenizer = inputs.backbone.tokenizer
    for number, unit in enumerate(inputs.data.units):
        assert len(unit.examples) == (2 if objective in ("dpo", "orpo") else 1)
        for example in unit.examples:
            assert example.labels[-1] == end_of_turn_id(tokenizer)
        asked = [{"role": "user", "content": row(number, objective)["prompt"]}]
        prompt = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        starts = [list(example.input_ids[: len(prompt)]) for example in unit.examples]
        assert starts == [prompt] * len(unit.examples)
    assert inputs.data.size == 12


def test_kto_pairs_each_prompt_with_another_answer(tiny: Path, tmp_path: Path) -> None:
    inputs = trainer_inputs(recipe_of(tiny, tmp_path, "kto"), tmp_path)
    units = inputs.data.units[:3]
    batch = kto_batch(units, 2, 128)
    answers = [
        {
            tuple(ids[mask == 1].tolist())
            for ids, mask in zip(
                batch[f"{prefix}input_ids"], batch[f"{prefix}completion_mask"], strict=True
            )
        }
        for prefix in ("", "KL_")
    ]
    assert answers[0] == answers[1]
    assert not torch.equal(batch["input_ids"], batch["KL_input_ids"])
    assert batch["label"].tolist() == [False, True, True]
    assert [len(group) for group in split_into_passes(inputs.data.units[:9], 4)] == [4, 3, 2]


def test_kto_pairs_the_only_answer_of_a_pass_with_another_answer(
    tiny: Path, tmp_path: Path
) -> None:
    """Twelve rows in steps of eleven leave one for the second step."""
    recipe = recipe_of(tiny, tmp_path, "kto", batch_size=11, micro_batch_size=11)
    trainer = objective_trainer(trainer_inputs(recipe, tmp_path), [])
    (unit, other), pad = trainer._units[:2], 2
    alone = trainer._batch(*trainer._passes([unit]))
    assert torch.equal(alone["input_ids"], kto_batch([unit], pad, 128)["input_ids"])
    answer = [label for label in other.examples[0].labels if label != -100]
    learned = alone["KL_input_ids"][alone["KL_completion_mask"] == 1]
    assert learned.tolist() == answer


def test_mismatched_rows_are_no_longer_than_the_longest_row(tiny: Path, tmp_path: Path) -> None:
    """A long prompt with a long answer would exceed the positions of a backbone."""
    recipe = recipe_of(tiny, tmp_path, "kto")
    rows = [
        {"prompt": "Say " + "it " * 30, "completion": "No.", "label": True},
        {"prompt": "Say", "completion": "It " * 30, "label": False},
        {"prompt": "Say not", "completion": "I do.", "label": True},
        {"prompt": "Say", "completion": "Yes, do.", "label": True},
    ]
    (tmp_path / "kto.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    trainer = objective_trainer(trainer_inputs(recipe, tmp_path), [])
    units = trainer._units
    batch = trainer._batch(UnitPass(units, len(units)))
    longest = max(unit.length for unit in units)
    assert batch["KL_input_ids"].shape[1] == longest
    assert kto_batch(units, 2, 10**6)["KL_input_ids"].shape[1] > longest
    assert (batch["KL_completion_mask"].sum(dim=1) > 0).all()
    # The second and the last unit have the same prompt.
    assert trainer._other_unit(units[1]) is units[2]
    assert trainer._other_unit(units[3]) is units[0]


def test_label_smoothing_is_unbiased(tiny: Path, tmp_path: Path) -> None:
    """Chowdhury et al. 2024, equation 12, for a pair and its reverse."""
    found = {}
    for smoothing in (0.0, 0.2):
        recipe = recipe_of(tiny, tmp_path, "dpo")
        assert recipe.preference is not None
        preference = recipe.preference.model_copy(update={"label_smoothing": smoothing})
        recipe = recipe.model_copy(update={"preference": preference})
        inputs = trainer_inputs(recipe, tmp_path)
        perturb_adapter(inputs.model)
        trainer = objective_trainer(inputs, [])
        pair = inputs.data.units[0]
        turned = dataclasses.replace(pair, examples=pair.examples[::-1])
        found[smoothing] = [
            trainer.compute_loss(inputs.model, dpo_batch([one], 2)).item() for one in (pair, turned)
        ]
    (right, wrong), (smoothed, _) = found[0.0], found[0.2]
    assert smoothed != pytest.approx(right, abs=1e-4)
    assert smoothed == pytest.approx((0.8 * right - 0.2 * wrong) / 0.6, abs=1e-5)


def test_the_gradient_of_orpo_does_not_depend_on_the_split_into_passes(
    tiny: Path, tmp_path: Path
) -> None:
    gradients = []
    for micro in (4, 2, 1):
        recipe = recipe_of(tiny, tmp_path, "orpo", micro_batch_size=micro)
        rows = [
            {"prompt": "Say " + "it " * 20 * n, "chosen": "It. " * (4 - n), "rejected": f"No {n}."}
            for n in range(4)
        ]
        (tmp_path / "orpo.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        inputs = trainer_inputs(recipe, tmp_path)
        perturb_adapter(inputs.model)
        trainer = objective_trainer(inputs, [])
        units = list(inputs.data.units)
        trainer.training_step(inputs.model, {"units": units, "rows": range(4)})
        gradients.append(
            torch.cat([p.grad.flatten() for p in inputs.model.parameters() if p.grad is not None])
        )
        logged = {name: sum(v) / len(v) for name, v in trainer._logged.items() if v}
        with torch.no_grad():
            chosen = [unit.examples[0] for unit in units]
            nll, _ = supervised_nll(inputs.model, pad_examples(chosen, 2))
        assert logged["nll_loss"] == pytest.approx(float(nll.mean()), abs=1e-5)
    for other in gradients[1:]:
        assert torch.allclose(other, gradients[0], atol=1e-5)


def test_orpo_adds_no_load_balancing_loss(tiny: Path, tmp_path: Path) -> None:
    """TRL would add the loss for a backbone that returns router logits."""
    size = json.loads((tiny / "config.json").read_text())["vocab_size"]
    config = MixtralConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
        output_router_logits=True,
        router_aux_loss_coef=1.0,
        eos_token_id=2,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "experts")
    for file in (*tiny.glob("tokenizer*"), *tiny.glob("*.jinja")):
        shutil.copy(file, tmp_path / "experts" / file.name)
    recipe = recipe_of(tmp_path / "experts", tmp_path, "orpo")
    targets = {"target_modules": ["q_proj", "v_proj"]}
    recipe = recipe.model_copy(update={"adapter": recipe.adapter.model_copy(update=targets)})
    inputs = trainer_inputs(recipe, tmp_path)
    trainer = objective_trainer(inputs, [])
    units = list(inputs.data.units[:4])
    loss = trainer.training_step(inputs.model, {"units": units, "rows": range(4)}).item()
    logged = {name: sum(v) / len(v) for name, v in trainer._logged.items() if v}
    weighted = 0.1 * logged["log_odds_ratio"]
    assert loss == pytest.approx(logged["nll_loss"] - weighted, abs=1e-5)


@pytest.mark.parametrize("objective", ["dpo", "kto", "orpo"])
def test_logged_metrics_are_means_over_the_units_of_a_step(
    tiny: Path, tmp_path: Path, objective: str
) -> None:
    """The split into passes does not matter, except for the divergence of kto."""
    logged = []
    for micro in (4, 2):
        recipe = recipe_of(tiny, tmp_path, objective, micro_batch_size=micro)
        inputs = trainer_inputs(recipe, tmp_path)
        perturb_adapter(inputs.model)
        trainer = objective_trainer(inputs, [])
        units = list(inputs.data.units[:3])
        trainer.training_step(inputs.model, {"units": units, "rows": range(3)})
        logged.append(
            {n: sum(v) / len(v) for n, v in trainer._logged.items() if n in trainer.logged_metrics}
        )
    assert set(logged[0]) == set(logged[1])
    assert len(logged[0]) > 3
    for name in set(logged[0]) - {"kl"}:
        assert logged[1][name] == pytest.approx(logged[0][name], abs=1e-4), name


@pytest.mark.parametrize(("loss", "beta"), [("hinge", 1.0), ("ipo", 0.01)])
def test_a_loss_of_zero_or_a_high_first_loss_does_not_end_training(
    tiny: Path, tmp_path: Path, loss: str, beta: float
) -> None:
    """The hinge loss reaches 0, and the ipo loss starts at 2,500 and is not in nats."""
    recipe = recipe_of(tiny, tmp_path, "dpo", epochs=10, save_steps=100)
    preference = {"loss": loss, "beta": beta}
    recipe = Recipe.model_validate(recipe.model_dump() | {"preference": preference})
    found = losses(pipeline.train(recipe, tmp_path / "run").session.run.root)
    assert len(found) == 30
    assert found[0] == pytest.approx(1.0 if loss == "hinge" else 2_500, rel=1e-3)
    assert loss == "ipo" or found[-21:] == [0.0] * 21
