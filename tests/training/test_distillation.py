"""Knowledge distillation."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_kit.modeling.likelihood import token_kl
from lora_kit.pipeline import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import BackboneError, TrainingError
from lora_kit.training.distillation import Teacher


@pytest.fixture
def teacher(tiny: Path, tmp_path: Path) -> Path:
    """Return the student with a low-rank change in its last block, which an adapter can learn."""
    from transformers import LlamaForCausalLM

    directory = tmp_path / "teacher"
    shutil.copytree(tiny, directory)
    model = LlamaForCausalLM.from_pretrained(tiny)
    generator = torch.Generator().manual_seed(0)
    down = model.model.layers[-1].mlp.down_proj.weight
    with torch.no_grad():
        for _ in range(2):
            left, right = (torch.randn(n, generator=generator) for n in down.shape)
            down += 3 * torch.outer(left, right)
    model.save_pretrained(directory)
    return directory


def distilling(recipe: Recipe, teacher: Path, **spec: Any) -> Recipe:
    document = recipe.model_dump(mode="json")
    document["data"]["validation"] = []
    document["training"] |= {"epochs": 6, "learning_rate": 2e-2}
    document["training"]["distillation"] = {
        "teacher": {"model": str(teacher), "quantization": "none", "dtype": "float32"},
        **spec,
    }
    return Recipe.model_validate(document)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_divergence_is_that_of_torch(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(150, 40, generator=generator) for _ in range(2))
    expected = torch.nn.functional.kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    assert torch.allclose(token_kl(teacher, student, temperature), expected, atol=1e-5)


@pytest.mark.slow
def test_the_student_comes_nearer_to_its_teacher(
    tiny_recipe: Recipe, teacher: Path, tmp_path: Path
) -> None:
    alone = train(distilling(tiny_recipe, teacher, weight=1.0), tmp_path / "run").result
    # With weight 1 the loss is the divergence alone; each epoch has the same rows.
    losses = [entry["loss"] for entry in alone.history]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    plain = train(distilling(tiny_recipe, teacher, weight=0.0), tmp_path / "plain").result
    # With weight 0 the loss is that of the labels, initially about that of guessing.
    words = json.loads((teacher / "config.json").read_text())["vocab_size"]
    assert plain.first_loss == pytest.approx(math.log(words), abs=0.2)


def test_a_teacher_with_other_tokens_is_refused(
    tiny_recipe: Recipe, teacher: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.add_tokens(["<unheard-of>"])
    tokenizer.save_pretrained(teacher)
    with pytest.raises(
        TrainingError, match=r"distillation\.teacher: the vocabulary differs .* 1 tokens differ"
    ):
        train(distilling(tiny_recipe, teacher), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_not_there_is_named(
    tiny_recipe: Recipe, teacher: Path, tmp_path: Path
) -> None:
    recipe = distilling(tiny_recipe, tmp_path / "nowhere")
    said = rf"^training\.distillation\.teacher\.model: {tmp_path}/nowhere: "
    with pytest.raises(BackboneError, match=said):
        train(recipe, tmp_path / "run")
    # The teacher's folder exists, but loading fails.
    (teacher / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"^training\.distillation\.teacher\.model: "):
        Teacher.of(distilling(tiny_recipe, teacher).training.distillation)


def test_it_is_of_texts_and_answers_alone(tiny_recipe: Recipe, teacher: Path) -> None:
    document = distilling(tiny_recipe, teacher).model_dump(mode="json")
    document["training"]["objective"] = "dpo"
    with pytest.raises(
        ValueError, match=r"training\.distillation: works with the objectives sft and text only"
    ):
        Recipe.model_validate(document)
