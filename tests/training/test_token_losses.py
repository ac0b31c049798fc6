"""Retention methods that change the loss of each supervised token."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTConfig

from lora_kit.backbone.load import Backbone
from lora_kit.data.dataset import prepare
from lora_kit.modeling.likelihood import CPU_CHUNK, supervised_logits, token_kl
from lora_kit.modeling.model_inputs import pad_examples, supervised_positions
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.pipeline import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.training.arguments import training_arguments
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.retention.entropy_weighting import entropy_weights
from lora_kit.training.retention.kl import NonTargetKl
from lora_kit.training.retention_methods import RetentionMethods
from lora_kit.training.supervised import SupervisedTrainer
from tests.training.keeping import changed, disturbed, gradient
from tests.training_rows import training_rows

COUNT, WORDS = 2 * CPU_CHUNK + 5, 40
"""More tokens than a chunk holds."""


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def words(seed: int = 2) -> torch.Tensor:
    return torch.randint(WORDS, (COUNT,), generator=torch.Generator().manual_seed(seed))


def naive_non_target_kl(
    base: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Return the divergence of each token, with the target's column taken out."""
    every = torch.arange(base.shape[1])
    rest = torch.stack([every[every != one] for one in targets])
    p, q = (one.softmax(-1).gather(1, rest) for one in (base, logits))
    p, q = (one / one.sum(-1, keepdim=True) for one in (p, q))
    return (p * (p / q).log()).sum(-1)


def test_the_divergence_without_the_target_is_that_of_the_renormalized_rest() -> None:
    base, targets = drawn(COUNT, WORDS), words()
    logits = drawn(COUNT, WORDS, seed=1).requires_grad_()
    weights = torch.rand(COUNT, generator=torch.Generator().manual_seed(3))
    found = NonTargetKl.divergences(base, logits, targets)
    (found * weights).sum().backward()
    ours, logits.grad = logits.grad, None
    expected = naive_non_target_kl(base, logits, targets)
    (expected * weights).sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours, logits.grad, rtol=1e-4, atol=1e-6)
    assert ours is not None
    at = (torch.arange(COUNT), targets)
    assert torch.all(ours[at] == 0)
    assert ours.abs().sum() > 1
    # However likely the target becomes, the divergence of the rest is the same.
    raised = logits.detach().clone()
    raised[at] += 20.0
    torch.testing.assert_close(NonTargetKl.divergences(base, raised, targets), found.detach())


def test_the_divergence_without_the_target_of_equal_logits_is_zero() -> None:
    logits = drawn(COUNT, WORDS)
    assert NonTargetKl.divergences(logits, logits.clone(), words()).abs().max() == 0


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_gradient_of_the_divergence_is_that_of_torch(temperature: float) -> None:
    target = drawn(COUNT, WORDS)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        logits = drawn(COUNT, WORDS, seed=1).to(dtype).requires_grad_()
        token_kl(target, logits, temperature).sum().backward()
        ours, logits.grad = logits.grad, None
        torch.nn.functional.kl_div(
            (logits.float() / temperature).log_softmax(-1),
            (target / temperature).log_softmax(-1),
            reduction="sum",
            log_target=True,
        ).backward()
        torch.testing.assert_close(ours, logits.grad, rtol=tolerance, atol=tolerance)


def test_the_weight_of_a_token_is_its_normalized_entropy() -> None:
    logits, top_k = drawn(7, WORDS), 5
    expected = []
    for row in logits:
        likeliest = sorted(row.exp().tolist())[-top_k:]
        shares = [one / sum(likeliest) for one in likeliest]
        expected.append(-sum(p * math.log(p) for p in shares) / math.log(top_k))
    found = entropy_weights(logits.requires_grad_(), top_k)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert not found.requires_grad


def test_the_weight_is_one_where_all_tokens_are_alike_and_zero_where_one_is_certain() -> None:
    certain = torch.zeros(1, WORDS)
    certain[0, 3] = 1e4
    assert entropy_weights(torch.zeros(1, WORDS), 20).item() == pytest.approx(1)
    assert entropy_weights(certain, 20).item() == 0
    # A smaller vocabulary than `top_k`.
    assert entropy_weights(torch.zeros(1, 4), 20).item() == pytest.approx(1)


def trained(recipe: Recipe, root: Path, retention: dict[str, Any], **training: Any) -> Any:
    settings = {"epochs": 2.0, "learning_rate": 5e-3} | training
    return train(changed(recipe, retention, **settings), root).result


def test_the_other_tokens_keep_their_order_and_logged_losses_leave_the_methods_out(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    free = trained(tiny_recipe, tmp_path / "free", {"non_target_kl": {"weight": 1e-6}})
    methods = {"non_target_kl": {"weight": 50.0}, "entropy_weighting": {}}
    held = trained(tiny_recipe, tmp_path / "held", methods)
    for result in (free, held):
        assert result.final_loss < result.first_loss
        # A new adapter is the base.
        assert result.history[0]["non_target_kl"] == pytest.approx(0, abs=1e-6)
    assert held.first_loss == pytest.approx(free.first_loss, rel=1e-5)
    assert held.history[-1]["non_target_kl"] < 0.5 * free.history[-1]["non_target_kl"]
    # A random model is unsure of everything.
    assert 0.9 < held.history[0]["entropy_weight"] <= 1
    assert "entropy_weight" not in free.history[0]


def test_a_step_is_the_same_however_it_is_divided(tiny_recipe: Recipe, tmp_path: Path) -> None:
    methods = {"non_target_kl": {}, "entropy_weighting": {"top_k": 4}}
    runs = [
        trained(tiny_recipe, tmp_path / str(tokens), methods, max_tokens_per_batch=tokens).history
        for tokens in (64, 512)
    ]
    for one, other in zip(*runs, strict=True):
        for name in ("loss", "grad_norm", "non_target_kl", "entropy_weight"):
            assert one[name] == pytest.approx(other[name], rel=2e-3, abs=1e-6), name


def test_the_gradient_of_a_pass_is_that_of_the_weighted_losses_and_the_penalty(
    tiny_backbone: Backbone, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    methods = {"non_target_kl": {"weight": 3.0}, "entropy_weighting": {"top_k": 4}}
    recipe = changed(tiny_recipe, methods)
    model = disturbed(tiny_backbone, recipe, size=0.3)
    rows, _ = training_rows(recipe.data, recipe.seed)
    data = prepare(rows, tiny_backbone.tokenizer, recipe.data)
    inputs = TrainingInputs(recipe, tiny_backbone, model, data, None, RunDirectory(tmp_path))
    options = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    trainer = SupervisedTrainer(
        args=training_arguments(SFTConfig, inputs, **options),
        inputs=inputs,
        retention=RetentionMethods.of(inputs, lambda _entry: None),
    )
    batch = pad_examples(data.examples[:3], 0)
    found = trainer.summed_loss(model, batch)
    found.backward()
    ours = gradient(model)

    with adapter_disabled(model), torch.no_grad():
        base = supervised_logits(model, batch)
    logits, targets = supervised_logits(model, batch), supervised_positions(batch)[0]
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    divergences = naive_non_target_kl(base, logits, targets)
    (entropy_weights(logits, 4) * nll + 3 * divergences).sum().backward()
    torch.testing.assert_close(ours, gradient(model), rtol=1e-3, atol=1e-5)
    assert found.item() == pytest.approx(nll.sum().item(), rel=1e-5)
    assert divergences.sum() > 1e-2


@pytest.mark.parametrize("method", ["non_target_kl", "entropy_weighting"])
def test_a_teacher_leaves_no_loss_of_the_labels_to_change(tiny_recipe: Recipe, method: str) -> None:
    document = tiny_recipe.model_dump(mode="json")
    document["training"]["distillation"] = {"teacher": {"model": "smollm2-135m-instruct"}}
    document["retention"] = {method: {}}
    with pytest.raises(ValueError, match=rf"retention\.{method}: .*training\.distillation"):
        Recipe.model_validate(document)
