"""Contrastive loss, cached gradients and the saved adapter of an embedding."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

from lora_kit import pipeline
from lora_kit.adapter.saved import read_saved_head
from lora_kit.adapter.saved_heads.embedding import SavedEmbedding
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import embedding_outputs, pad_right
from lora_kit.backbone.load import load
from lora_kit.modeling.embeddings import embed_batch, embed_rows
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.embedding import Pooling
from lora_kit.runtime.errors import BackboneError
from lora_kit.training.preferences.cached_gradients import (
    ALONE,
    Processes,
    backward_in_passes,
)
from lora_kit.training.preferences.contrast import Contrast
from tests.embedding import embedding_recipe, unit


def vectors(count: int) -> torch.Tensor:
    drawn = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(drawn, dim=-1)


def test_the_loss_of_a_pair_is_the_surprise_at_its_positive_among_all_texts() -> None:
    contrast = Contrast.of([unit([1], [2], [3]), unit([4], [5]), unit([6], [7], [8])])
    assert contrast.texts == ((1,), (4,), (6,), (2,), (5,), (7,), (3,), (8,))
    given = vectors(8)
    losses, nearest = contrast.losses(given, 0.5)
    for pair in range(3):
        scores = [math.exp(float(given[pair] @ given[3 + text]) / 0.5) for text in range(5)]
        assert losses[pair].item() == pytest.approx(-math.log(scores[pair] / sum(scores)))
        assert bool(nearest[pair]) == (max(scores) == scores[pair])


def test_a_right_text_of_another_pair_is_no_negative() -> None:
    """Texts 2 and 5 answer anchor 1; text 7 answers two anchors, and one negative is anchor 6."""
    step = [unit([1], [2]), unit([1], [5]), unit([6], [7]), unit([9], [7], [6])]
    contrast = Contrast.of(step)
    assert contrast.excluded.int().tolist() == [
        [0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 0, 1, 1],
        [0, 0, 1, 0, 0],
    ]
    given = vectors(9)
    losses, _ = contrast.losses(given, 0.05)
    kept = [0, 2, 3, 4]
    scores = given[0] @ given[4:].T / 0.05
    expected = -(scores[0] - scores[kept].logsumexp(0))
    assert losses[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_equals_that_of_sentence_transformers() -> None:
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    contrast = Contrast.of([unit([n], [n + 10], [n + 20]) for n in range(4)])
    given = vectors(12)
    theirs = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=20.0)
    columns = [given[:4], given[4:8], given[8:]]
    expected = theirs.compute_loss_from_embeddings(columns, None)
    assert contrast.losses(given, 0.05)[0].mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_cached_gradients_are_those_of_one_pass(tiny_encoder: Path) -> None:
    """Triplets of unlike lengths, in passes of four texts."""
    spec = BackboneSpec(model=str(tiny_encoder), quantization="none", dtype="float32")
    model = load(resolve(spec), spec, embedding_outputs("mean")).model.requires_grad_()
    texts = [tuple(range(5, 6 + n)) for n in range(1, 10)]
    contrast = Contrast.of([unit(*texts[n : n + 3]) for n in (0, 3, 6)])

    def embed(some: Any) -> torch.Tensor:
        return embed_rows(model, some, "mean", 0, torch.device("cpu"), 100)

    def loss_of(given: torch.Tensor) -> torch.Tensor:
        return contrast.losses(given, 0.05)[0].mean()

    def gradients() -> torch.Tensor:
        found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return torch.cat(found)

    loss = loss_of(embed(contrast.texts))
    loss.backward()
    expected = gradients()
    device = torch.device("cpu")
    cached = backward_in_passes(contrast.texts, 4, embed, loss_of, torch.Tensor.backward, device)
    assert cached.item() == pytest.approx(loss.item(), rel=1e-5)
    assert torch.allclose(gradients(), expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("texts_per_pass", [2, 12])
def test_processes_share_the_texts_of_a_step(texts_per_pass: int) -> None:
    """Three processes, one of which has a text less, and a fourth without any."""
    texts = [tuple(range(1, 2 + n)) for n in (4, 1, 3, 2, 5)]
    values = torch.linspace(-1, 1, 28).reshape(7, 4).sin()

    def loss_of(given: torch.Tensor) -> torch.Tensor:
        return (given @ given.T).exp().sum()

    def run(texts: Any, processes: Processes = ALONE) -> tuple[torch.Tensor, torch.Tensor]:
        weight = values.clone().requires_grad_()

        def embed(some: Any) -> torch.Tensor:
            return torch.stack([weight[len(one)] * weight[0] for one in some])

        device = torch.device("cpu")
        backward = torch.Tensor.backward
        loss = backward_in_passes(
            texts, texts_per_pass, embed, loss_of, backward, device, processes
        )
        assert weight.grad is not None
        return loss, weight.grad

    def shared(texts: Any, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Let each process gather what all would have sent; return loss and mean gradient."""
        sent: list[torch.Tensor] = []

        def record(own: torch.Tensor) -> torch.Tensor:
            sent.append(own.clone())
            return own.repeat(count, 1)

        for index in range(count):
            run(texts, Processes(index, count, record))
        every = torch.cat(sent)
        found = [run(texts, Processes(n, count, lambda _: every.clone())) for n in range(count)]
        losses, gradients = zip(*found, strict=True)
        assert len({loss.item() for loss in losses}) == 1
        return losses[0], torch.stack(gradients).mean(0)

    for some, count in ((texts, 3), (texts[:3], 4)):
        loss, gradient = run(some)
        found = shared(some, count)
        assert found[0].item() == pytest.approx(loss.item(), rel=1e-6)
        assert torch.allclose(found[1], gradient, rtol=1e-5, atol=1e-6)


def test_dropout_draws_the_same_numbers_in_both_passes_over_a_text() -> None:
    weight, seen = torch.ones(8, requires_grad=True), list[torch.Tensor]()

    def embed(some: Any) -> torch.Tensor:
        seen.append(torch.nn.functional.dropout(weight.repeat(len(some), 1)))
        return seen[-1]

    texts, device = [(1,), (2,), (3,)], torch.device("cpu")
    backward_in_passes(texts, 2, embed, torch.sum, torch.Tensor.backward, device)
    first, second, *again = seen
    assert torch.equal(first, again[0].detach())
    assert torch.equal(second, again[1].detach())
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.cat([first, second]).sum(0))


@pytest.mark.parametrize(
    ("fixture", "pooling", "micro_batch_size"),
    [("tiny_encoder", "mean", 4), ("tiny", "last", None)],
)
def test_a_training_learns_and_plain_transformers_and_peft_give_the_same_vectors(
    fixture: str,
    pooling: Pooling,
    micro_batch_size: int | None,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """The pooling follows from the attention, causal for the decoder; PEFT misses no weights."""
    backbone: Path = request.getfixturevalue(fixture)
    training = {"micro_batch_size": micro_batch_size, "epochs": 2.0}
    trained = pipeline.train(
        embedding_recipe(backbone, tmp_path, training=training), tmp_path / "run"
    )
    assert trained.result.steps == 12
    assert trained.result.final_loss < trained.result.first_loss
    assert all(0 <= one["accuracy"] <= 1 for one in trained.result.history)
    adapter = trained.run.adapter
    assert read_saved_head(adapter) == SavedEmbedding(48, pooling, 0.05, 32)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["task_type"] == "FEATURE_EXTRACTION"
    ids, mask = torch.tensor([[5, 6, 7], [9, 8, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    base = AutoModel.from_pretrained(backbone, dtype=torch.float32)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        plain = PeftModel.from_pretrained(base, adapter).eval()
        states = plain(input_ids=ids, attention_mask=mask).last_hidden_state
        batch = {"input_ids": ids, "attention_mask": mask}
        mine = embed_batch(trained.session.model.eval(), batch, pooling)
    means = torch.stack([states[0].mean(0), states[1, :2].mean(0)])
    pooled = means if pooling == "mean" else torch.stack([states[0, 2], states[1, 1]])
    assert torch.allclose(torch.nn.functional.normalize(pooled, dim=1), mine, atol=1e-6)


def test_vectors_of_a_text_do_not_depend_on_its_batch_and_have_length_one(tiny: Path) -> None:
    spec = BackboneSpec(model=str(tiny), quantization="none", dtype="float32")
    backbone = load(resolve(spec), spec, embedding_outputs("mean"))
    rows = [[5, 6, 7, 8, 9], [9], [3, 4], [4, 3, 2, 1]]
    device = torch.device("cpu")
    with torch.no_grad():
        every = embed_rows(backbone.model, rows, "mean", 0, device, 8)
        for row, vector in zip(rows, every, strict=True):
            alone = embed_batch(backbone.model, pad_right([row], 0), "mean")[0]
            assert torch.allclose(alone, vector, atol=1e-6)
            states = backbone.model(torch.tensor([row])).last_hidden_state[0]
            assert torch.allclose(vector, states.mean(0) / states.mean(0).norm(), atol=1e-6)
    with pytest.raises(BackboneError, match=r"embedding\.pooling: .*\(got cls\)"):
        load(resolve(spec), spec, embedding_outputs("cls"))
