"""Preference objectives, GRPO and SDFT: reference policy, tokens, checkpoints, refusals."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file
from trl.trainer.utils import add_fused_lm_head

from lora_kit import pipeline
from lora_kit.adapter.saved import save_adapter
from lora_kit.backbone.load import Backbone
from lora_kit.data.supervision import IGNORE_INDEX
from lora_kit.modeling.likelihood import supervised_nll
from lora_kit.modeling.model_inputs import pad_examples
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.preflight.checks import launch_problems, run_checks
from lora_kit.preflight.context import PreflightContext
from lora_kit.preflight.launch_checks import refuse_partitioned_objective
from lora_kit.preflight.make_plan import make_plan
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import AdapterError, DataError, TrainingError
from lora_kit.runtime.launch import Launch
from lora_kit.training.preferences.answer_log_probs import restoring_forward, score_answers_only
from lora_kit.training.preferences.objectives import objective_trainer
from lora_kit.training.preferences.prompts import PromptSampler
from lora_kit.training.preferences.rewards import reward_functions
from lora_kit.training.preferences.unit_batches import dpo_batch
from tests.plain_process import run_new
from tests.preferring import OBJECTIVES, perturb_adapter, recipe_of, row, trainer_inputs
from tests.training.cut import cut_off, losses, sha256


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train a run of each objective, and save logits of the trained model next to it."""
    folder = tmp_path_factory.mktemp("objectives")
    for objective in OBJECTIVES:
        recipe = recipe_of(tiny, folder, objective)
        model = pipeline.train(recipe, folder / objective).session.model
        with torch.no_grad():
            logits = model(input_ids=torch.arange(3, 23)[None]).logits
        torch.save(logits, folder / f"{objective}.pt")
    return {objective: folder / objective for objective in OBJECTIVES}


def test_the_first_loss_is_that_of_a_policy_equal_to_its_reference(
    trained: dict[str, Path],
) -> None:
    """The loss is -log sigmoid(0) for dpo, and 1 - sigmoid(0) for kto."""
    assert losses(trained["dpo"])[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(trained["kto"])[0] == pytest.approx(0.5, abs=1e-6)


def test_preferences_are_learned_and_logged(trained: dict[str, Path]) -> None:
    lines = [json.loads(line) for line in (trained["dpo"] / "metrics.jsonl").open()]
    assert len(lines) == 6
    assert lines[0]["rewards/margins"] == 0.0
    assert lines[-1]["rewards/margins"] > 0.05
    assert lines[-1]["rewards/accuracies"] == 1.0
    logged = {"kto": "kl", "orpo": "nll_loss", "grpo": "reward", "sdft": "completions/mean_length"}
    for objective, name in logged.items():
        steps = [json.loads(line) for line in (trained[objective] / "metrics.jsonl").open()]
        assert all(name in step for step in steps), objective
        assert steps[-1]["tokens"] > steps[0]["tokens"] > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_single_adapter_is_saved(trained: dict[str, Path], objective: str) -> None:
    adapter = trained[objective] / "adapter"
    assert not [path for path in adapter.iterdir() if path.is_dir()]
    assert not [n for n in load_file(adapter / "adapter_model.safetensors") if ".ref." in n]
    assert not (trained[objective] / "checkpoints").exists()


RELOADED = """
import sys, torch
from lora_kit.adapter.attach import attach_saved
from lora_kit.backbone.load import load
from lora_kit.backbone.files import resolve
from lora_kit.runs.directory import RunDirectory
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
    run_new(RELOADED, tmp_path, *(trained[objective] for objective in OBJECTIVES))
    here = {objective: torch.load(f"{trained[objective]}.pt") for objective in OBJECTIVES}
    for objective in OBJECTIVES:
        assert torch.equal(torch.load(tmp_path / f"{objective}.pt"), here[objective]), objective
    assert not torch.equal(here["dpo"], here["orpo"])


@pytest.mark.parametrize("objective", ["dpo", "kto", "grpo", "sdft"])
def test_resumed_training_ends_like_uninterrupted_training(
    tiny: Path,
    trained: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
) -> None:
    """Training is interrupted in the second epoch, whose order differs from the first."""
    recipe = recipe_of(tiny, tmp_path, objective)
    cut_off(monkeypatch, recipe, tmp_path / "run", 4)
    pipeline.train(recipe, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(trained[objective])
    assert sha256(tmp_path / "run") == sha256(trained[objective])


def test_the_model_is_unpatched_if_the_training_had_ended_before(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny, tmp_path, "dpo")
    cut_off(monkeypatch, recipe, tmp_path / "run", 6)
    saved: list[bool] = []

    def save(model: Any, *rest: Any) -> None:
        saved.append("forward" in vars(model.get_base_model()))
        save_adapter(model, *rest)

    monkeypatch.setattr("lora_kit.training.trainer.save_adapter", save)
    pipeline.train(recipe, tmp_path / "run", resume=True)
    assert saved == [False]


def test_the_reference_is_the_base_with_the_adapter_disabled(tiny: Path, tmp_path: Path) -> None:
    inputs = trainer_inputs(recipe_of(tiny, tmp_path, "dpo"), tmp_path / "checkpoints")
    trained_before = [n for n, p in inputs.model.named_parameters() if p.requires_grad]
    trainer: Any = objective_trainer(inputs, [])
    assert list(inputs.model.peft_config) == ["default"]
    assert [n for n, p in inputs.model.named_parameters() if p.requires_grad] == trained_before
    perturb_adapter(inputs.model)
    units = inputs.data.units[:3]
    chosen, rejected = trainer.compute_ref_log_probs(inputs.model, dpo_batch(units, 2))
    for side, found in enumerate((chosen, rejected)):
        examples = [unit.examples[side] for unit in units]
        batch = pad_examples(examples, 2)
        with torch.no_grad(), adapter_disabled(inputs.model):
            nll, rows = supervised_nll(inputs.model, batch)
        expected = -torch.zeros(3).index_add_(0, rows, nll)
        assert torch.allclose(found, expected, atol=1e-4)
        with torch.no_grad():
            other, _ = supervised_nll(inputs.model, batch)
        assert not torch.allclose(other, nll, atol=1e-3)


@pytest.mark.parametrize("method", ["ia3", "vera", "ln_tuning", "full"])
def test_the_base_is_the_reference_of_other_methods_too(
    tiny: Path, tmp_path: Path, method: str
) -> None:
    document = recipe_of(tiny, tmp_path, "dpo").model_dump(mode="json")
    document["adapter"] = {"method": method}
    inputs = trainer_inputs(Recipe.model_validate(document), tmp_path / "checkpoints")
    before = {n: p.clone() for n, p in inputs.model.named_parameters() if p.requires_grad}
    trainer: Any = objective_trainer(inputs, [])
    after = {n: p for n, p in inputs.model.named_parameters() if p.requires_grad}
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert list(inputs.model.peft_config) == ["default"]
    step = {"units": inputs.data.units[:2], "rows": [0, 1]}
    loss = trainer.training_step(inputs.model, step)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-5)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in after.values())


def test_an_adapter_on_the_output_head_is_refused(tiny: Path, tmp_path: Path) -> None:
    document = recipe_of(tiny, tmp_path, "dpo").model_dump(mode="json")
    document["adapter"] = {"method": "trainable_tokens", "options": {"token_indices": [11, 12]}}
    inputs = trainer_inputs(Recipe.model_validate(document), tmp_path)
    with pytest.raises(AdapterError, match="trainable_tokens on the output head"):
        run_checks(
            PreflightContext(inputs.recipe, Launch(), backbone=inputs.backbone, model=inputs.model)
        )


@pytest.mark.parametrize("objective", ["dpo", "grpo", "sdft"])
def test_adapters_of_quantized_weights_stay_in_float32(
    tiny: Path, tmp_path: Path, objective: str
) -> None:
    document = recipe_of(tiny, tmp_path, objective).model_dump(mode="json")
    document["backbone"]["quantization"] = "nf4"
    inputs = trainer_inputs(Recipe.model_validate(document), tmp_path / "checkpoints")
    objective_trainer(inputs, [])
    trained = [p for p in inputs.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}


def test_gradient_checkpointing_does_not_change_losses(
    tiny: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    recipe = recipe_of(tiny, tmp_path, "dpo", gradient_checkpointing=True)
    pipeline.train(recipe, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(trained["dpo"]), abs=1e-5)


def test_log_probs_of_answers_equal_those_of_trl(
    tiny_backbone: Backbone, tiny: Path, tmp_path: Path
) -> None:
    inputs = trainer_inputs(recipe_of(tiny, tmp_path, "dpo"), tmp_path)
    model = inputs.model
    perturb_adapter(model)
    batch = dpo_batch(inputs.data.units[:3], 2)
    mask = batch.pop("completion_mask")
    model_inputs = {**batch, "labels": batch["input_ids"].masked_fill(mask == 0, IGNORE_INDEX)}
    figures = ("log_probs", "entropy", "mean_logits", "is_top1")
    own = type(model.get_base_model()).forward
    gradients = []
    found = []
    for ours in (False, True):
        with restoring_forward(model):
            if ours:
                score_answers_only(model, temperature=0.7)
            else:
                add_fused_lm_head(model.get_base_model(), temperature=0.7, outputs=figures)
            output = model(**model_inputs, fused_lm_head=True)
        model.zero_grad()
        (output.log_probs * torch.arange(output.log_probs.shape[1])).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        found.append([getattr(output, name).detach().float() for name in figures])
    assert model.get_base_model().forward.__func__ is own
    for theirs, ours_ in zip(*found, strict=True):
        assert torch.allclose(theirs, ours_, atol=1e-4)
    for theirs, ours_ in zip(*gradients, strict=True):
        assert torch.allclose(theirs, ours_, rtol=1e-3, atol=1e-4)


def test_every_prompt_is_sampled_and_each_epoch_has_its_own_order() -> None:
    sampler = PromptSampler(5, prompts=2, answers=3, passes=2, seed=0)
    first = list(sampler)
    assert len(first) == len(sampler) == 3 * 2 * 3 * 2
    assert set(first) == set(range(5))
    step = first[:12]
    assert step[:6] == step[6:]
    assert [step.count(one) for one in dict.fromkeys(step)] == [6, 6]
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    again = PromptSampler(5, prompts=2, answers=3, passes=2, seed=0)
    again.set_epoch(1)
    assert list(again) == second


def test_the_reward_equals_the_score_of_a_generation_task(tiny: Path, tmp_path: Path) -> None:
    spec = recipe_of(tiny, tmp_path, "grpo").grpo
    assert spec is not None
    (chrf,) = reward_functions(spec.model_copy(update={"scored_text": "first_line"}))
    (exact,) = reward_functions(spec.model_copy(update={"rewards": ["exact_match"]}))
    completions = [[{"role": "assistant", "content": text}] for text in (" 7 \nI think.", "7", "8")]
    assert exact(completions=completions, reference=["7"] * 3) == [0.0, 1.0, 0.0]
    assert chrf(completions=completions, reference=["7"] * 3) == [100.0, 100.0, 0.0]


@pytest.mark.parametrize(
    ("objective", "section", "part"),
    [
        (
            "sft",
            {"preference": {"beta": 0.2}},
            "preference: is read by the objectives dpo, kto and orpo only",
        ),
        (
            "sft",
            {"grpo": {}},
            "grpo: is read by the objective grpo only (training.objective is sft)",
        ),
        (
            "dpo",
            {"grpo": {}},
            "grpo: is read by the objective grpo only (training.objective is dpo)",
        ),
        (
            "dpo",
            {"preference": {"desirable_weight": 2}},
            "preference.desirable_weight: is read by the objective kto only",
        ),
        (
            "orpo",
            {"preference": {"loss": "ipo"}},
            "preference.loss: is read by the objective dpo only",
        ),
        (
            "dpo",
            {"preference": {"loss": "ipo", "label_smoothing": 0.1}},
            "is read by the loss sigmoid only, and preference.loss is ipo",
        ),
        (
            "dpo",
            {"retention": {"kl": {}}},
            "retention.kl: works with the objectives sft and text only",
        ),
        ("dpo", {"adapter": {"dropout": 0.1}}, "adapter.dropout: dpo compares"),
        ("sdft", {"adapter": {"dropout": 0.1}}, "sdft compares the adapter with the teacher"),
        ("sft", {"sdft": {}}, "sdft: is read by the objective sdft only (training.objective is"),
        (
            "sdft",
            {"retention": {"non_target_kl": {}}},
            "retention.non_target_kl: works with the objectives sft and text only",
        ),
        ("sdft", {"data": {"packing": True}}, "data.packing: works with the objectives sft and"),
        (
            "sdft",
            {"training": {"distillation": {"teacher": {"model": "m"}}}},
            "training.distillation: works with the objectives sft and text only",
        ),
        ("sdft", {"training": {"micro_batch_size": 3}}, "does not divide training.batch_size 8"),
        ("sdft", {"sdft": {"teacher_prompt": "{prompt}"}}, "has to contain {demonstration} once"),
        (
            "sdft",
            {"sdft": {"max_new_tokens": 8, "skipped_tokens": 8}},
            "`skipped_tokens` 8 leaves out all of the `max_new_tokens` 8",
        ),
        ("grpo", {"adapter": {"method": "adalora"}}, "adapter.method: adalora"),
        ("kto", {"training": {"micro_batch_size": 1}}, "which takes two examples (got 1)"),
        ("grpo", {"training": {"micro_batch_size": 3}}, "does not divide the 64 answers of a step"),
        (
            "dpo",
            {"training": {"gradual_unfreezing_steps": 3}},
            "training.gradual_unfreezing_steps: works with the objectives sft, text, ",
        ),
        ("dpo", {"training": {"eval_steps": 3}}, "training.eval_steps: the validation"),
        ("grpo", {"grpo": {"rewards": ["hub:bleu"]}}, "code of this machine only"),
        (
            "grpo",
            {"evaluation": {"arms": ["base", "adapter", "scratch"]}},
            "scratch works with the objectives sft and text only",
        ),
    ],
)
def test_fields_that_an_objective_does_not_use_are_refused(
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


def test_the_section_of_an_objective_survives_a_round_trip(tiny: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny, tmp_path, "kto")
    assert recipe.preference is not None
    assert recipe.preference.beta == 0.1
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("objective", "other", "part"),
    [
        ("dpo", "kto", "the objectives dpo, orpo and reward need preference pairs"),
        ("kto", "dpo", "does not support preference pairs"),
        ("grpo", "orpo", "does not support preference pairs"),
    ],
)
def test_rows_of_another_kind_are_refused_before_the_run_is_created(
    tiny: Path, tmp_path: Path, objective: str, other: str, part: str
) -> None:
    recipe = recipe_of(tiny, tmp_path, objective)
    rows = Path(recipe.data.train[0].source)
    rows.write_text("".join(json.dumps(row(n, other)) + "\n" for n in range(4)))
    with pytest.raises(DataError, match=part):
        pipeline.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_answers_without_labels_are_refused(tiny: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny, tmp_path, "kto")
    Path(recipe.data.train[0].source).write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(DataError, match=r"kto\.jsonl:1: .*true or false label \(got none"):
        pipeline.train(recipe, tmp_path / "run")


@pytest.mark.parametrize("objective", [pytest.param("dpo", marks=pytest.mark.slow), "grpo"])
def test_a_plan_shows_supervised_samples(tiny: Path, tmp_path: Path, objective: str) -> None:
    plan = make_plan(recipe_of(tiny, tmp_path, objective))
    assert plan.optimizer_steps == 6
    assert plan.on_backbone is not None
    assert plan.on_backbone.counts.rows == 12
    samples = plan.on_backbone.samples
    shown = ["".join(span.text for span in sample if span.supervised) for sample in samples]
    expected = (
        ["It is 3.", "Who knows, 0?"] if objective == "dpo" else ["Who knows, 0?", "It is 5."]
    )
    assert [text.removesuffix("<|im_end|>") for text in shown] == expected


def test_sharded_training_is_refused_and_the_estimate_names_its_gaps(
    tiny: Path, tmp_path: Path
) -> None:
    left_out = {"dpo": "the forward pass of the reference policy", "sdft": "of the teacher"}
    for objective, part in left_out.items():
        recipe = recipe_of(tiny, tmp_path, objective)
        with pytest.raises(TrainingError, match=rf"{objective}: .* lockstep\. Fix: .*ddp\.yaml"):
            refuse_partitioned_objective(PreflightContext(recipe, Launch(deepspeed=True)))
        found = run_checks(PreflightContext(recipe, Launch()))
        assert any(part in one for one in found.warnings)


@pytest.mark.parametrize(
    ("processes", "sizes", "part"),
    [
        (3, {}, r"training\.batch_size: grpo gives .* \(got 4 prompts, 3 processes\)"),
        (4, {"micro_batch_size": 8}, ""),
        (
            2,
            {"batch_size": 6, "micro_batch_size": 4},
            r"training\.micro_batch_size: does not divide the 6 answers of a process \(got 4\)",
        ),
    ],
)
def test_prompts_are_shared_out_equally_or_refused(
    tiny: Path, tmp_path: Path, processes: int, sizes: dict[str, int], part: str
) -> None:
    recipe = recipe_of(tiny, tmp_path, "grpo", **sizes)
    launch = Launch(asked=processes, processes=processes, kind="MULTI_CPU")
    problems = list(launch_problems(recipe, launch))
    assert len(problems) == bool(part)
    assert all(re.match(part, problem) for problem in problems)
