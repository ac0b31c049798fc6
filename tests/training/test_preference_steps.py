"""A step of preferences: what it learns from, what is said of it, and what does not end it."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from lora_kit import pipeline
from lora_kit.data.tokenization import end_of_turn
from lora_kit.modeling.likelihood import pad_examples, supervised_nll
from lora_kit.recipe.recipe import Recipe
from lora_kit.training.preferences.objectives import objective_trainer
from lora_kit.training.preferences.unit_batches import groups_of, judged, pairs
from tests.preferring import OBJECTIVES, moved, recipe_of, row, setting_of
from tests.training.cut import losses


def test_a_step_is_the_same_however_it_is_cut_into_passes(tiny: Path, tmp_path: Path) -> None:
    gradients = []
    for micro in (1, 2, 4):
        recipe = recipe_of(tiny, tmp_path, "dpo", micro_batch_size=micro)
        trainer: Any = objective_trainer(setting_of(recipe, tmp_path / "checkpoints"), [])
        moved(trainer.model)
        step = {"units": trainer.data_collator.keywords["units"][:3], "rows": [0, 1, 2]}
        loss = trainer.training_step(trainer.model, step)
        found = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        gradients.append((loss, torch.cat([g.flatten() for g in found])))
    for loss, gradient in gradients[1:]:
        assert loss == pytest.approx(float(gradients[0][0]), abs=1e-5)
        assert torch.allclose(gradient, gradients[0][1], atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_both_answers_have_the_prompt_of_sft_and_learn_to_end(
    tiny: Path, tmp_path: Path, objective: str
) -> None:
    setting = setting_of(recipe_of(tiny, tmp_path, objective), tmp_path)
    tokenizer = setting.backbone.tokenizer
    for number, unit in enumerate(setting.data.units):
        assert len(unit.examples) == (2 if objective in ("dpo", "orpo") else 1)
        for example in unit.examples:
            assert example.labels[-1] == end_of_turn(tokenizer)
        asked = [{"role": "user", "content": row(number, objective)["prompt"]}]
        prompt = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        starts = [list(example.input_ids[: len(prompt)]) for example in unit.examples]
        assert starts == [prompt] * len(unit.examples)
    assert setting.data.size == 12


def test_kto_sees_each_prompt_with_the_answer_to_another(tiny: Path, tmp_path: Path) -> None:
    setting = setting_of(recipe_of(tiny, tmp_path, "kto"), tmp_path)
    units = setting.data.units[:3]
    batch = judged(units, 2, 128)
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
    assert [len(group) for group in groups_of(setting.data.units[:9], 4)] == [4, 3, 2]


def test_kto_gives_the_one_answer_of_a_pass_another_answer_beside_it(
    tiny: Path, tmp_path: Path
) -> None:
    """Twelve rows in steps of eleven: the second step has one."""
    recipe = recipe_of(tiny, tmp_path, "kto", batch_size=11, micro_batch_size=11)
    trainer = objective_trainer(setting_of(recipe, tmp_path), [])
    (unit, other), pad = trainer._units[:2], 2
    alone = trainer._batch([unit])
    assert torch.equal(alone["input_ids"], judged([unit], pad, 128)["input_ids"])
    answer = [label for label in other.examples[0].labels if label != -100]
    learned = alone["KL_input_ids"][alone["KL_completion_mask"] == 1]
    assert learned.tolist() == answer


def test_no_prompt_with_anothers_answer_is_longer_than_every_row(
    tiny: Path, tmp_path: Path
) -> None:
    """A backbone with learned positions has none for it; a long prompt meets a long answer."""
    recipe = recipe_of(tiny, tmp_path, "kto")
    rows = [
        {"prompt": "Say " + "it " * 30, "completion": "No.", "label": True},
        {"prompt": "Say", "completion": "It " * 30, "label": False},
        {"prompt": "Say not", "completion": "I do.", "label": True},
        {"prompt": "Say", "completion": "Yes, do.", "label": True},
    ]
    (tmp_path / "kto.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    trainer = objective_trainer(setting_of(recipe, tmp_path), [])
    units = trainer._units
    batch = trainer._batch(units)
    longest = max(unit.length for unit in units)
    assert batch["KL_input_ids"].shape[1] == longest
    assert judged(units, 2, 10**6)["KL_input_ids"].shape[1] > longest
    assert (batch["KL_completion_mask"].sum(dim=1) > 0).all()
    # The second's prompt is the last one's too.
    assert trainer._another(units[1]) is units[2]
    assert trainer._another(units[3]) is units[0]


def test_smoothed_labels_are_another_loss_that_is_right_on_average(
    tiny: Path, tmp_path: Path
) -> None:
    """Chowdhury et al. 2024, equation 12: of a pair and the same pair turned round."""
    found = {}
    for smoothing in (0.0, 0.2):
        recipe = recipe_of(tiny, tmp_path, "dpo")
        assert recipe.preference is not None
        preference = recipe.preference.model_copy(update={"label_smoothing": smoothing})
        recipe = recipe.model_copy(update={"preference": preference})
        setting = setting_of(recipe, tmp_path)
        moved(setting.model)
        trainer = objective_trainer(setting, [])
        pair = setting.data.units[0]
        turned = dataclasses.replace(pair, examples=pair.examples[::-1])
        found[smoothing] = [
            trainer.compute_loss(setting.model, pairs([one], 2)).item() for one in (pair, turned)
        ]
    (right, wrong), (smoothed, _) = found[0.0], found[0.2]
    assert smoothed != pytest.approx(right, abs=1e-4)
    assert smoothed == pytest.approx((0.8 * right - 0.2 * wrong) / 0.6, abs=1e-5)


def test_orpo_learns_the_same_from_a_step_however_it_is_cut(tiny: Path, tmp_path: Path) -> None:
    gradients = []
    for micro in (4, 2, 1):
        recipe = recipe_of(tiny, tmp_path, "orpo", micro_batch_size=micro)
        rows = [
            {"prompt": "Say " + "it " * 20 * n, "chosen": "It. " * (4 - n), "rejected": f"No {n}."}
            for n in range(4)
        ]
        (tmp_path / "orpo.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        setting = setting_of(recipe, tmp_path)
        moved(setting.model)
        trainer = objective_trainer(setting, [])
        units = list(setting.data.units)
        trainer.training_step(setting.model, {"units": units, "rows": range(4)})
        gradients.append(
            torch.cat([p.grad.flatten() for p in setting.model.parameters() if p.grad is not None])
        )
        said = {name: sum(v) / len(v) for name, v in trainer._said.items() if v}
        with torch.no_grad():
            chosen = [unit.examples[0] for unit in units]
            nll, _ = supervised_nll(setting.model, pad_examples(chosen, 2))
        assert said["nll_loss"] == pytest.approx(float(nll.mean()), abs=1e-5)
    for other in gradients[1:]:
        assert torch.allclose(other, gradients[0], atol=1e-5)


def test_orpo_leaves_the_balance_of_experts_as_it_is(tiny: Path, tmp_path: Path) -> None:
    """Where a backbone says how its experts are used, TRL would add a loss for that."""
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
    setting = setting_of(recipe, tmp_path)
    trainer = objective_trainer(setting, [])
    units = list(setting.data.units[:4])
    loss = trainer.training_step(setting.model, {"units": units, "rows": range(4)}).item()
    said = {name: sum(v) / len(v) for name, v in trainer._said.items() if v}
    weighted = 0.1 * said["log_odds_ratio"]
    assert loss == pytest.approx(said["nll_loss"] - weighted, abs=1e-5)


@pytest.mark.parametrize("objective", ["dpo", "kto", "orpo"])
def test_what_is_said_of_a_step_is_the_mean_of_its_units(
    tiny: Path, tmp_path: Path, objective: str
) -> None:
    """However it is cut; of kto, the divergence is that of a pass."""
    said = []
    for micro in (4, 2):
        recipe = recipe_of(tiny, tmp_path, objective, micro_batch_size=micro)
        setting = setting_of(recipe, tmp_path)
        moved(setting.model)
        trainer = objective_trainer(setting, [])
        units = list(setting.data.units[:3])
        trainer.training_step(setting.model, {"units": units, "rows": range(3)})
        said.append({n: sum(v) / len(v) for n, v in trainer._said.items() if n in trainer.figures})
    assert set(said[0]) == set(said[1])
    assert len(said[0]) > 3
    for name in set(said[0]) - {"kl"}:
        assert said[1][name] == pytest.approx(said[0][name], abs=1e-4), name


@pytest.mark.parametrize(("loss", "beta"), [("hinge", 1.0), ("ipo", 0.01)])
def test_a_training_on_pairs_that_has_learned_all_or_rises_a_little_goes_on(
    tiny: Path, tmp_path: Path, loss: str, beta: float
) -> None:
    """hinge comes to 0; ipo's 2,500 at the start are no nats."""
    recipe = recipe_of(tiny, tmp_path, "dpo", epochs=10, save_steps=100)
    preference = {"loss": loss, "beta": beta}
    recipe = Recipe.model_validate(recipe.model_dump() | {"preference": preference})
    found = losses(pipeline.train(recipe, tmp_path / "run").session.run.root)
    assert len(found) == 30
    assert found[0] == pytest.approx(1.0 if loss == "hinge" else 2_500, rel=1e-3)
    assert loss == "ipo" or found[-21:] == [0.0] * 21
