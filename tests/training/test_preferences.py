"""Pairs, judged answers and rewards: references, tokens, checkpoints, and what is refused."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file
from trl.trainer.utils import add_fused_lm_head

from lora_kit import pipeline
from lora_kit.adapters import attach, switched_off
from lora_kit.backbone import Backbone, load
from lora_kit.backbone_files import resolve
from lora_kit.data.dataset import prepare, training_rows
from lora_kit.data.tokenization import IGNORED, end_of_turn
from lora_kit.data.units import PreparedUnits
from lora_kit.errors import AdapterError, DataError, TrainingError
from lora_kit.launch import Launch
from lora_kit.likelihood import pad_examples, supervised_nll
from lora_kit.preflight.checks import run_checks
from lora_kit.preflight.method_checks import in_one_process
from lora_kit.preflight.plan import make_plan
from lora_kit.preflight.situation import Situation
from lora_kit.processes import process_state
from lora_kit.recipe import Recipe
from lora_kit.training.preferences.grpo import Prompts
from lora_kit.training.preferences.objectives import Setting, objective_trainer
from lora_kit.training.preferences.rewards import rewards_of
from lora_kit.training.preferences.scored_forward import forward_put_back, score_answers_alone
from lora_kit.training.preferences.unit_batches import groups_of, judged, pairs
from tests.training.cut import cut_off, losses, sha256

OBJECTIVES = ("dpo", "kto", "orpo", "grpo")


def row(number: int, objective: str) -> dict[str, Any]:
    asked = f"What is {number} plus {number + 3}?"
    right, wrong = f"It is {2 * number + 3}.", f"Who knows, {number}?"
    if objective in ("dpo", "orpo"):
        return {"prompt": asked, "chosen": right, "rejected": wrong}
    good = number % 3 > 0
    return {"prompt": asked, "completion": right if good else wrong, "label": good}


def recipe_of(tiny: Path, folder: Path, objective: str, **training: Any) -> Recipe:
    """Two epochs of three steps, a checkpoint after each."""
    rows = folder / f"{objective}.jsonl"
    rows.write_text("".join(json.dumps(row(n, objective)) + "\n" for n in range(12)))
    quiz = {
        "name": "quiz",
        "role": "gain",
        "tasks": [{"name": "line", "kind": "loss", "source": "python-reference", "limit": 2}],
    }
    (folder / "quiz.yaml").write_text(yaml.safe_dump(quiz))
    document: dict[str, Any] = {
        "name": "tiny",
        "backbone": {"model": str(tiny), "quantization": "none", "dtype": "float32"},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {"train": [{"source": str(rows)}], "max_length": 128},
        "training": {
            "objective": objective,
            "epochs": 2,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "checkpoint_steps": 1,
            "keep_checkpoints": 100,
            **training,
        },
        "evaluation": {"suites": [str(folder / "quiz.yaml")]},
    }
    if objective == "grpo":
        document["grpo"] = {"rewards": ["chrf"], "generations": 2, "max_new_tokens": 4}
    return Recipe.model_validate(document)


def setting_of(recipe: Recipe, directory: Path) -> Setting:
    backbone = load(resolve(recipe.backbone), recipe.backbone)
    objective = recipe.training.objective
    rows, _ = training_rows(recipe.data, recipe.seed, objective)
    data = prepare(rows, backbone.tokenizer, recipe.data, 0, objective)
    assert isinstance(data, PreparedUnits)
    model = attach(backbone, recipe.adapter, recipe.seed)
    return Setting(recipe, backbone, model, data, directory, 6)


def moved(model: torch.nn.Module) -> None:
    """Let the adapter say something else than the base."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each objective, and beside it logits of the model as it was trained."""
    folder = tmp_path_factory.mktemp("objectives")
    for objective in OBJECTIVES:
        recipe = recipe_of(tiny, folder, objective)
        model = pipeline.train(recipe, folder / objective).session.model
        with torch.no_grad():
            logits = model(input_ids=torch.arange(3, 23)[None]).logits
        torch.save(logits, folder / f"{objective}.pt")
    return {objective: folder / objective for objective in OBJECTIVES}


def test_the_first_loss_is_that_of_a_policy_which_is_its_reference(
    trained: dict[str, Path],
) -> None:
    """-log sigmoid(0), and for kto 1 - sigmoid(0)."""
    assert losses(trained["dpo"])[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(trained["kto"])[0] == pytest.approx(0.5, abs=1e-6)


def test_preferences_are_learned_and_written_down(trained: dict[str, Path]) -> None:
    lines = [json.loads(line) for line in (trained["dpo"] / "metrics.jsonl").open()]
    assert len(lines) == 6
    assert lines[0]["rewards/margins"] == 0.0
    assert lines[-1]["rewards/margins"] > 0.05
    assert lines[-1]["rewards/accuracies"] == 1.0
    for objective, name in (("kto", "kl"), ("orpo", "nll_loss"), ("grpo", "reward")):
        steps = [json.loads(line) for line in (trained[objective] / "metrics.jsonl").open()]
        assert all(name in step for step in steps), objective
        assert steps[-1]["tokens"] > steps[0]["tokens"] > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_saved_is_one_adapter(trained: dict[str, Path], objective: str) -> None:
    adapter = trained[objective] / "adapter"
    assert not [path for path in adapter.iterdir() if path.is_dir()]
    assert not [n for n in load_file(adapter / "adapter_model.safetensors") if ".ref." in n]
    assert not (trained[objective] / "checkpoints").exists()


RELOADED = """
import sys, torch
from lora_kit.adapters import attach_saved
from lora_kit.backbone import load
from lora_kit.backbone_files import resolve
from lora_kit.run import RunDirectory
from pathlib import Path
for name in sys.argv[2:]:
    run = RunDirectory(Path(name))
    spec = run.load_recipe().backbone
    backbone = load(resolve(spec), spec)
    model = attach_saved(backbone, run.adapter).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 23)[None]).logits
    torch.save(logits, Path(sys.argv[1]) / f"{run.root.name}.pt")
"""


def test_each_objective_reloads_in_a_new_process_with_the_same_logits(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    roots = [str(trained[objective]) for objective in OBJECTIVES]
    subprocess.run([sys.executable, "-c", RELOADED, str(tmp_path), *roots], check=True)
    here = {objective: torch.load(f"{trained[objective]}.pt") for objective in OBJECTIVES}
    for objective in OBJECTIVES:
        assert torch.equal(torch.load(tmp_path / f"{objective}.pt"), here[objective]), objective
    assert not torch.equal(here["dpo"], here["orpo"])


@pytest.mark.parametrize("objective", ["dpo", "kto", "grpo"])
def test_a_training_that_was_cut_off_ends_as_if_it_had_not_been(
    tiny: Path,
    trained: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
) -> None:
    """Cut in the second epoch, whose order is another one."""
    recipe = recipe_of(tiny, tmp_path, objective)
    cut_off(monkeypatch, recipe, tmp_path / "run", 4)
    pipeline.train(recipe, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(trained[objective])
    assert sha256(tmp_path / "run") == sha256(trained[objective])


def test_the_reference_is_the_base_with_the_adapter_switched_off(
    tiny: Path, tmp_path: Path
) -> None:
    setting = setting_of(recipe_of(tiny, tmp_path, "dpo"), tmp_path / "checkpoints")
    trained_before = [n for n, p in setting.model.named_parameters() if p.requires_grad]
    trainer: Any = objective_trainer(setting, [])
    assert list(setting.model.peft_config) == ["default"]
    assert [n for n, p in setting.model.named_parameters() if p.requires_grad] == trained_before
    moved(setting.model)
    units = setting.data.units[:3]
    chosen, rejected = trainer.compute_ref_log_probs(setting.model, pairs(units, 2))
    for side, found in enumerate((chosen, rejected)):
        examples = [unit.examples[side] for unit in units]
        batch = pad_examples(examples, 2)
        with torch.no_grad(), switched_off(setting.model):
            nll, rows = supervised_nll(setting.model, batch)
        wanted = -torch.zeros(3).index_add_(0, rows, nll)
        assert torch.allclose(found, wanted, atol=1e-4)
        with torch.no_grad():
            other, _ = supervised_nll(setting.model, batch)
        assert not torch.allclose(other, nll, atol=1e-3)


@pytest.mark.parametrize("method", ["ia3", "vera", "ln_tuning", "full"])
def test_other_methods_have_the_base_as_reference_too(
    tiny: Path, tmp_path: Path, method: str
) -> None:
    document = recipe_of(tiny, tmp_path, "dpo").model_dump(mode="json")
    document["adapter"] = {"method": method}
    setting = setting_of(Recipe.model_validate(document), tmp_path / "checkpoints")
    before = {n: p.clone() for n, p in setting.model.named_parameters() if p.requires_grad}
    trainer: Any = objective_trainer(setting, [])
    after = {n: p for n, p in setting.model.named_parameters() if p.requires_grad}
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert list(setting.model.peft_config) == ["default"]
    step = {"units": setting.data.units[:2], "rows": [0, 1]}
    loss = trainer.training_step(setting.model, step)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-5)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in after.values())


def test_an_adapter_on_the_output_head_is_refused(tiny: Path, tmp_path: Path) -> None:
    document = recipe_of(tiny, tmp_path, "dpo").model_dump(mode="json")
    document["adapter"] = {"method": "trainable_tokens", "options": {"token_indices": [11, 12]}}
    setting = setting_of(Recipe.model_validate(document), tmp_path)
    with pytest.raises(AdapterError, match="trainable_tokens on the output head"):
        run_checks(Situation(setting.recipe, backbone=setting.backbone, model=setting.model))


@pytest.mark.parametrize("objective", ["dpo", "grpo"])
def test_adapters_of_quantized_weights_stay_in_float32(
    tiny: Path, tmp_path: Path, objective: str
) -> None:
    document = recipe_of(tiny, tmp_path, objective).model_dump(mode="json")
    document["backbone"]["quantization"] = "nf4"
    setting = setting_of(Recipe.model_validate(document), tmp_path / "checkpoints")
    objective_trainer(setting, [])
    trained = [p for p in setting.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}


def test_recomputed_activations_change_nothing(
    tiny: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    recipe = recipe_of(tiny, tmp_path, "dpo", gradient_checkpointing=True)
    pipeline.train(recipe, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(trained["dpo"]), abs=1e-5)


def test_figures_of_answers_are_those_that_trl_takes_of_every_position(
    tiny_backbone: Backbone, tiny: Path, tmp_path: Path
) -> None:
    setting = setting_of(recipe_of(tiny, tmp_path, "dpo"), tmp_path)
    model = setting.model
    moved(model)
    batch = pairs(setting.data.units[:3], 2)
    mask = batch.pop("completion_mask")
    inputs = {**batch, "labels": batch["input_ids"].masked_fill(mask == 0, IGNORED)}
    figures = ("log_probs", "entropy", "mean_logits", "is_top1")
    own = type(model.get_base_model()).forward
    gradients = []
    found = []
    for ours in (False, True):
        with forward_put_back(model):
            if ours:
                score_answers_alone(model, temperature=0.7)
            else:
                add_fused_lm_head(model.get_base_model(), temperature=0.7, outputs=figures)
            output = model(**inputs, fused_lm_head=True)
        model.zero_grad()
        (output.log_probs * torch.arange(output.log_probs.shape[1])).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        found.append([getattr(output, name).detach().float() for name in figures])
    assert model.get_base_model().forward.__func__ is own
    for theirs, ours_ in zip(*found, strict=True):
        assert torch.allclose(theirs, ours_, atol=1e-4)
    for theirs, ours_ in zip(*gradients, strict=True):
        assert torch.allclose(theirs, ours_, rtol=1e-3, atol=1e-4)


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
    recipe = recipe_of(tiny, tmp_path, "dpo", epochs=10, checkpoint_steps=100)
    preference = {"loss": loss, "beta": beta}
    recipe = Recipe.model_validate(recipe.model_dump() | {"preference": preference})
    found = losses(pipeline.train(recipe, tmp_path / "run").session.run.root)
    assert len(found) == 30
    assert found[0] == pytest.approx(1.0 if loss == "hinge" else 2_500, rel=1e-3)
    assert loss == "ipo" or found[-21:] == [0.0] * 21


def test_every_prompt_is_answered_and_an_epoch_has_an_order_of_its_own() -> None:
    sampler = Prompts(5, prompts=2, answers=3, passes=2, seed=0)
    first = list(sampler)
    assert len(first) == len(sampler) == 3 * 2 * 3 * 2
    assert set(first) == set(range(5))
    step = first[:12]
    assert step[:6] == step[6:]
    assert [step.count(one) for one in dict.fromkeys(step)] == [6, 6]
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    again = Prompts(5, prompts=2, answers=3, passes=2, seed=0)
    again.set_epoch(1)
    assert list(again) == second


def test_the_reward_is_what_a_generation_task_measures(tiny: Path, tmp_path: Path) -> None:
    spec = recipe_of(tiny, tmp_path, "grpo").grpo
    assert spec is not None
    (chrf,) = rewards_of(spec.model_copy(update={"answer": "first_line"}))
    (exact,) = rewards_of(spec.model_copy(update={"rewards": ["exact_match"]}))
    said = [[{"role": "assistant", "content": text}] for text in (" 7 \nI think.", "7", "8")]
    assert exact(completions=said, reference=["7"] * 3) == [0.0, 1.0, 0.0]
    assert chrf(completions=said, reference=["7"] * 3) == [100.0, 100.0, 0.0]


@pytest.mark.parametrize(
    ("objective", "section", "part"),
    [
        ("sft", {"preference": {"beta": 0.2}}, "preference: the objective sft does not go by it"),
        ("sft", {"grpo": {}}, "grpo: the objective sft does not go by it"),
        ("dpo", {"grpo": {}}, "grpo: the objective dpo does not go by it"),
        ("dpo", {"preference": {"desirable_weight": 2}}, "kto alone goes by it, not dpo"),
        ("orpo", {"preference": {"loss": "ipo"}}, "dpo alone goes by it, not orpo"),
        (
            "dpo",
            {"preference": {"loss": "ipo", "label_smoothing": 0.1}},
            "the loss ipo does not go by it",
        ),
        ("dpo", {"retention": {"anchor": {}}}, "retention.anchor: is made for the objective sft"),
        ("dpo", {"adapter": {"dropout": 0.1}}, "adapter.dropout: dpo compares"),
        ("grpo", {"adapter": {"method": "adalora"}}, "adapter.method: adalora"),
        ("kto", {"training": {"micro_batch_size": 1}}, "two examples at least"),
        ("grpo", {"training": {"micro_batch_size": 3}}, "a step has 64 answers"),
        ("dpo", {"training": {"unfreeze_steps": 3}}, "training.unfreeze_steps: is made for"),
        ("dpo", {"training": {"validate_steps": 3}}, "training.validate_steps: the validation"),
        ("grpo", {"grpo": {"rewards": ["hub:bleu"]}}, "computed on this machine"),
        ("grpo", {"evaluation": {"arms": ["base", "adapter", "scratch"]}}, "scratch is made for"),
    ],
)
def test_what_an_objective_does_not_use_is_refused(
    objective: str, section: dict[str, Any], part: str
) -> None:
    document: dict[str, Any] = {
        "name": "x",
        "backbone": {"model": "m", "quantization": "none"},
        "data": {"train": [{"source": "stdlib-docstrings"}]},
        "training": {"objective": objective},
    }
    for name, value in section.items():
        document[name] = document.get(name, {}) | value
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(document)
    assert part in str(caught.value)


def test_an_objective_has_its_section_and_reads_it_back(tiny: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny, tmp_path, "kto")
    assert recipe.preference is not None
    assert recipe.preference.beta == 0.1
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("objective", "other", "part"),
    [
        ("dpo", "kto", "the objectives dpo, orpo and reward learn from pairs"),
        ("kto", "dpo", "a pair of preference"),
        ("grpo", "orpo", "a pair of preference"),
    ],
)
def test_rows_of_another_kind_are_refused_before_anything_is_made(
    tiny: Path, tmp_path: Path, objective: str, other: str, part: str
) -> None:
    recipe = recipe_of(tiny, tmp_path, objective)
    rows = Path(recipe.data.train[0].source)
    rows.write_text("".join(json.dumps(row(n, other)) + "\n" for n in range(4)))
    with pytest.raises(DataError, match=part):
        pipeline.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_judged_answers_have_to_be_judged(tiny: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny, tmp_path, "kto")
    Path(recipe.data.train[0].source).write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(DataError, match=r"kto\.jsonl:1: .*whether the completion is a good one"):
        pipeline.train(recipe, tmp_path / "run")


@pytest.mark.parametrize("objective", [pytest.param("dpo", marks=pytest.mark.slow), "grpo"])
def test_a_plan_shows_what_is_learned_from(tiny: Path, tmp_path: Path, objective: str) -> None:
    plan = make_plan(recipe_of(tiny, tmp_path, objective))
    assert plan.optimizer_steps == 6
    assert plan.counts is not None
    assert plan.counts.rows == 12
    shown = ["".join(span.text for span in sample if span.supervised) for sample in plan.samples]
    wanted = ["It is 3.", "Who knows, 0?"] if objective == "dpo" else ["Who knows, 0?", "It is 5."]
    assert [text.removesuffix("<|im_end|>") for text in shown] == wanted


def test_several_processes_are_refused_and_the_estimate_says_what_it_leaves_out(
    tiny: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny, tmp_path, "dpo")
    with pytest.raises(TrainingError, match="is trained by one process, and 2 are launched"):
        in_one_process(Situation(recipe, launch=Launch(processes=2)))
    found = run_checks(Situation(recipe))
    assert any("the forward pass of the reference policy" in one for one in found.warnings)
    assert process_state().num_processes == 1
