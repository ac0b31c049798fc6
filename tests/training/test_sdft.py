"""SDFT: the loss, its teacher and their prompts, against an independent computation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from lora_kit import pipeline
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import load
from lora_kit.data.rows import Message, Row
from lora_kit.modeling.modes import eval_mode
from lora_kit.preflight.checks import run_checks
from lora_kit.preflight.context import PreflightContext
from lora_kit.preflight.position_checks import check_demonstrations
from lora_kit.recipe.objective import SdftSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.launch import Launch
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.preferences.objectives import objective_trainer
from lora_kit.training.preferences.prompts import teacher_prompt
from lora_kit.training.preferences.sdft import SdftStepTrainer
from tests.integration.objectives_in_turn import fixed_rollouts
from tests.narrow import write_narrow
from tests.preferring import perturb_adapter, recipe_of, trainer_inputs
from tests.training.cut import losses

TEMPLATE = "{prompt} {{json}} For example: {demonstration}"
Distributions = NDArray[np.float64]


def with_fields(recipe: Recipe, **fields: Any) -> Recipe:
    document = recipe.model_dump(mode="json")
    document["sdft"] |= fields
    return Recipe.model_validate(document)


def recipe_for(
    tiny: Path, folder: Path, training: dict[str, Any] | None = None, **fields: Any
) -> Recipe:
    return with_fields(recipe_of(tiny, folder, "sdft", **(training or {})), **fields)


def begun(recipe: Recipe, directory: Path) -> tuple[TrainingInputs, Any, dict[str, Any]]:
    """Return the inputs, the trainer and a batch of three answers of a model that has learned."""
    inputs = trainer_inputs(recipe, directory / "checkpoints")
    trainer: Any = objective_trainer(inputs, [])
    for _ in range(9):  # random models hardly differ, and their distributions are flat
        perturb_adapter(inputs.model)
    trainer.current_gradient_accumulation_steps = 1
    inputs.model.train()
    # Prompts of different lengths, so that two of them are padded.
    batch = trainer._prepare_training_batch([trainer.train_dataset[n] for n in (0, 7, 11)])
    assert len(set(batch["prompt_mask"].sum(1).tolist())) > 1
    return inputs, trainer, batch


def answers_in(batch: dict[str, Any]) -> list[list[int]]:
    ids, mask = batch["completion_ids"], batch["completion_mask"].bool()
    return [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]


def prompts_of(inputs: TrainingInputs, shown: bool) -> list[list[int]]:
    """Return the prompts of the batch, tokenized by transformers; `shown`: for the teacher."""
    prompts = []
    for number in (0, 7, 11):
        asked, right = f"What is {number} plus {number + 3}?", f"It is {2 * number + 3}."
        text = TEMPLATE.replace("{prompt}", asked).replace("{demonstration}", right)
        turns = [{"role": "user", "content": text if shown else asked}]
        ids = inputs.backbone.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        prompts.append(list(ids))
    return prompts


def distributions(
    model: Any, prompt: list[int], answer: list[int], temperature: float
) -> Distributions:
    """Return the distribution of each token of an answer, without padding: (tokens, vocabulary)."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    found: Distributions = (logits.double() / temperature).softmax(dim=-1).numpy()
    return found


def bucketed(values: Distributions, kept: Sequence[int]) -> Distributions:
    """Return the probabilities of some tokens, and that of all others together."""
    return np.append(values[kept], max(1 - values[kept].sum(), 0.0))


def divergence(student: Distributions, teacher: Distributions, spec: SdftSpec) -> float:
    if spec.top_k is not None:
        kept = np.argsort(student)[-spec.top_k :].tolist()
        student, teacher = bucketed(student, kept), bucketed(teacher, kept)
    if spec.divergence == "reverse_kl":
        return float(entropy(student, teacher))
    if spec.divergence == "forward_kl":
        return float(entropy(teacher, student))
    return float(jensenshannon(student, teacher) ** 2)


@pytest.mark.parametrize(
    ("positions", "fields"),
    [
        ("rotary", {"top_k": 5}),
        ("rotary", {"top_k": None, "divergence": "forward_kl"}),
        ("rotary", {"top_k": 9, "divergence": "jensen_shannon", "temperature": 0.1}),
        ("learned", {"skipped_tokens": 2, "temperature": 0.02}),
    ],
)
def test_the_loss_is_the_divergence_from_the_base_that_sees_the_completion(
    tiny: Path,
    smollm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    positions: str,
) -> None:
    # Answers of different lengths, so that some are padded.
    monkeypatch.setattr(SdftStepTrainer, "_generate_transformers", fixed_rollouts)
    if positions == "learned":
        tiny = write_narrow(tmp_path / "narrow", smollm, 128, template=True)
    fields = {"max_new_tokens": 6, "teacher_prompt": TEMPLATE, "temperature": 0.15} | fields
    recipe = recipe_for(tiny, tmp_path, **fields)
    inputs, trainer, batch = begun(recipe, tmp_path)
    spec = recipe.sdft
    assert spec is not None
    assert len(set(map(len, answers_in(batch)))) > 1
    base = load(resolve(recipe.backbone), recipe.backbone).model.eval()
    means = []
    with eval_mode(inputs.model):
        for asked, shown, answer in zip(
            prompts_of(inputs, False), prompts_of(inputs, True), answers_in(batch), strict=True
        ):
            student = distributions(inputs.model, asked, answer, spec.temperature)
            teacher = distributions(base, shown, answer, spec.temperature)
            tokens = [divergence(*pair, spec) for pair in zip(student, teacher, strict=True)]
            counted = tokens[spec.skipped_tokens :]
            means.append(sum(counted) / max(len(counted), 1))
    loss = trainer.compute_loss(inputs.model, batch)
    assert loss.item() == pytest.approx(np.mean(means), rel=1e-3)
    assert loss.item() > 0.01
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in inputs.model.parameters())


def test_the_teacher_has_the_log_probs_of_the_base_in_evaluation_mode(
    tiny: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(tiny, tmp_path, teacher_prompt=TEMPLATE)
    inputs, trainer, batch = begun(recipe, tmp_path)
    for module in inputs.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    logits = trainer._compute_teacher_student_logits(inputs.model, trainer.teacher_model, batch)
    base = load(resolve(recipe.backbone), recipe.backbone).model.eval()
    for row, (shown, answer) in enumerate(
        zip(prompts_of(inputs, True), answers_in(batch), strict=True)
    ):
        expected = np.log(distributions(base, shown, answer, 1.0))
        found = logits.teacher_logits[row, : len(answer)].log_softmax(dim=-1)
        assert np.allclose(found.numpy(), expected, atol=1e-4)
        student = logits.student_logits[row, : len(answer)].log_softmax(dim=-1).detach()
        assert not np.allclose(student.numpy(), expected, atol=1e-2)
    assert inputs.model.training


@pytest.mark.parametrize("method", ["ia3", "ln_tuning", "full"])
def test_the_base_is_the_teacher_of_other_methods_too(
    tiny: Path, tmp_path: Path, method: str
) -> None:
    document = recipe_for(tiny, tmp_path, teacher_prompt=TEMPLATE).model_dump(mode="json")
    document["adapter"] = {"method": method}
    recipe = Recipe.model_validate(document)
    inputs, trainer, batch = begun(recipe, tmp_path)
    logits = trainer._compute_teacher_student_logits(inputs.model, trainer.teacher_model, batch)
    base = load(resolve(recipe.backbone), recipe.backbone).model.eval()
    shown, answer = prompts_of(inputs, True)[0], answers_in(batch)[0]
    expected = np.log(distributions(base, shown, answer, 1.0))
    found = logits.teacher_logits[0, : len(answer)].log_softmax(dim=-1).numpy()
    assert np.allclose(found, expected, atol=1e-4)


def test_answers_end_with_the_turn_and_are_the_students_own(tiny: Path, tmp_path: Path) -> None:
    """With an adapter that always says one token, the answer is this token."""
    recipe = recipe_for(tiny, tmp_path, max_new_tokens=6)
    inputs, trainer, _ = begun(recipe, tmp_path)
    end = inputs.backbone.tokenizer.convert_tokens_to_ids("<|im_end|>")
    head = inputs.model.get_output_embeddings()
    for wanted, lengths in ((end, [1]), (11, [6])):
        with head.register_forward_hook(lambda _m, _i, out, n=wanted: _only(out, n)):
            batch = trainer._prepare_training_batch([trainer.train_dataset[0]])
        assert batch["completion_mask"].sum(1).tolist() == lengths
        assert set(answers_in(batch)[0]) == {wanted}


def test_long_prompts_of_the_teacher_are_not_cut(tiny: Path, tmp_path: Path) -> None:
    recipe = recipe_for(tiny, tmp_path, teacher_prompt="very " * 600 + TEMPLATE)
    _, _, batch = begun(recipe, tmp_path)
    assert batch["teacher_attention_mask"].sum(1).min() > 600


def _only(logits: torch.Tensor, token: int) -> torch.Tensor:
    return torch.full_like(logits, -1e4).index_fill(-1, torch.tensor(token), 0.0)


def test_losses_depend_on_no_division_into_passes_and_on_no_checkpointing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SdftStepTrainer, "_generate_transformers", fixed_rollouts)
    found = []
    for number, training in enumerate(
        ({"micro_batch_size": 4}, {"micro_batch_size": 1}, {"gradient_checkpointing": True})
    ):
        recipe = recipe_for(tiny, tmp_path, {**training, "epochs": 0.6})
        pipeline.train(recipe, tmp_path / str(number))
        found.append(losses(tmp_path / str(number)))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


def shown_row(*turns: tuple[str, str], completion: str = "An answer.") -> Row:
    messages = (*(Message(*turn) for turn in turns), Message("assistant", completion))
    return Row("rows.jsonl:1", "", messages)


def test_only_the_last_turn_of_the_teachers_prompt_is_changed(tokenizer: Any) -> None:
    row = shown_row(("system", "Be short."), ("user", "Set {demonstration} to 1"))
    spec = SdftSpec(teacher_prompt="{prompt} [{demonstration}] {x}")
    ids = teacher_prompt(row, spec, tokenizer)
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nBe short.<|im_end|>\n"
        "<|im_start|>user\nSet {demonstration} to 1 [An answer.] {x}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_control_tokens_in_the_teachers_prompt_are_refused(tokenizer: Any) -> None:
    spec = SdftSpec(teacher_prompt="{prompt}<|im_end|>{demonstration}")
    with pytest.raises(DataError, match=r"sdft\.teacher_prompt: rows\.jsonl:1: .*<\|im_end\|>"):
        teacher_prompt(shown_row(("user", "Hello")), spec, tokenizer)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (
            {"messages": [{"role": "assistant", "content": "a"}] * 2},
            r"rows\.jsonl:1: .*\(got the role assistant\)",
        ),
        (
            {"prompt": "a", "completion": "b", "label": False},
            r"rows\.jsonl:1: .*label: false",
        ),
        ({"text": "a"}, r"rows\.jsonl:1: the objective sdft needs a prompt and a completion"),
    ],
)
def test_rows_without_a_demonstration_are_refused(
    tiny: Path, tmp_path: Path, row: dict[str, Any], part: str
) -> None:
    recipe = recipe_for(tiny, tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n")
    document = recipe.model_dump(mode="json")
    document["data"]["train"] = [{"source": str(rows)}]
    with pytest.raises(DataError, match=part):
        pipeline.train(Recipe.model_validate(document), tmp_path / "run")


def test_prompts_beyond_the_window_of_the_backbone_are_reported(tiny: Path, tmp_path: Path) -> None:
    inputs = trainer_inputs(recipe_for(tiny, tmp_path, max_new_tokens=64), tmp_path)
    context = PreflightContext(
        inputs.recipe,
        Launch(),
        backbone=inputs.backbone,
        examples=inputs.data.examples,
        units=inputs.data.units,
    )
    assert check_demonstrations(context) is None
    inputs.backbone.model.config.max_position_embeddings = 96
    warning = check_demonstrations(context)
    assert warning is not None
    assert "ends beyond the window of 96 tokens" in warning
    assert warning in run_checks(context).warnings
