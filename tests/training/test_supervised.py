from pathlib import Path
from typing import Any

import pytest
import torch

from lora_kit.backbone.load import Backbone
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.modeling.likelihood import supervised_nll
from lora_kit.modeling.model_inputs import pack_examples, pad_examples
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.pipeline import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.session import open_run
from lora_kit.training.micro_batcher import MicroBatcher

LENGTHS = [30, 4, 17, 9, 26, 5, 5, 12]


def example(length: int, offset: int = 100) -> Example:
    ids = tuple(range(offset, offset + length))
    return Example(ids, (IGNORE_INDEX,) * (length // 2) + ids[length // 2 :])


EXAMPLES = [example(length, 100 * number) for number, length in enumerate(LENGTHS, start=1)]


def tokens_in(batches: list[dict[str, torch.Tensor]]) -> list[int]:
    """Return the supervised tokens of all batches, sorted; each token is unique."""
    labels = [batch["labels"].flatten() for batch in batches]
    return sorted(int(label) for part in labels for label in part if label != IGNORE_INDEX)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("rows", "tokens"), [(8, None), (3, None), (8, 60), (2, 40), (8, 10)])
def test_no_token_is_lost_or_seen_twice(rows: int, tokens: int | None, packing: bool) -> None:
    batches = MicroBatcher(8, rows, tokens, packing).tensors(EXAMPLES, pad_token_id=0)
    expected = sorted(label for e in EXAMPLES for label in e.labels if label != IGNORE_INDEX)
    assert tokens_in(batches) == expected
    for batch in batches:
        size = batch["input_ids"].numel()
        alone = (int((batch["position_ids"] == 0).sum()) if packing else len(batch["labels"])) == 1
        assert tokens is None or size <= tokens or alone
        assert packing or len(batch["input_ids"]) <= rows


def test_the_longest_come_first_and_examples_of_a_length_together() -> None:
    batches = MicroBatcher(8, 2).tensors(EXAMPLES, pad_token_id=0)
    assert [batch["input_ids"].shape[1] for batch in batches] == [30, 17, 9, 5]
    padding = sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)
    assert padding == (30 - 26) + (17 - 12) + (9 - 5) + (5 - 4)


def test_packs_are_filled() -> None:
    batches = MicroBatcher(8, 8, 36, packing=True).tensors(EXAMPLES, pad_token_id=0)
    assert [batch["input_ids"].shape[1] for batch in batches] == [35, 35, 34, 4]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_examples_do_not_see_one_another(real_backbone: Backbone, attention: str) -> None:
    model, tokenizer = real_backbone.model, real_backbone.tokenizer
    model.set_attn_implementation(attention)
    texts = ["The cat sat on the mat.", "Water boils at a hundred degrees.", "Two and two is four"]
    examples = []
    for text in texts:
        ids = tuple(tokenizer(text)["input_ids"])
        examples.append(Example(ids, (IGNORE_INDEX, *ids[1:])))
    with torch.no_grad():
        packed, _ = supervised_nll(model, pack_examples(examples))
        alone = [supervised_nll(model, pad_examples([e], 0))[0] for e in examples]
        # A leak: the same tokens in one row without restarted positions.
        joined = Example(
            tuple(i for e in examples for i in e.input_ids),
            tuple(label for e in examples for label in e.labels),
        )
        leaking, _ = supervised_nll(model, pad_examples([joined], 0))
    assert torch.allclose(packed, torch.cat(alone), atol=1e-4)
    assert not torch.allclose(leaking, torch.cat(alone), atol=0.1)


def test_the_loss_and_its_gradient_are_those_of_cross_entropy() -> None:
    """More tokens than a chunk holds, each with a weight of its own."""
    from lora_kit.modeling.likelihood import CPU_CHUNK, token_nll

    torch.manual_seed(0)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        count = 2 * CPU_CHUNK + 5
        logits = torch.randn(count, 50).mul(3).to(dtype).requires_grad_()
        targets, weights = torch.randint(50, (count,)), torch.rand(count)
        nll = token_nll(logits, targets)
        (nll * weights).sum().backward()
        ours, logits.grad = logits.grad, None
        expected = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        (expected * weights).sum().backward()
        assert torch.allclose(nll, expected, atol=1e-5)
        assert ours is not None
        assert logits.grad is not None
        assert torch.allclose(ours, logits.grad, atol=tolerance)
        assert ours.dtype == dtype


def test_tokens_of_a_tied_embedding_are_trained_in_its_head_too(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """TRL refuses an adapter on the head, which its own loss would ignore."""
    document = tiny_recipe.model_dump(mode="json")
    indices = list(range(40, 400))
    document["adapter"] = {"method": "trainable_tokens", "options": {"token_indices": indices}}
    trained = train(Recipe.model_validate(document), tmp_path / "run")
    model: Any = trained.session.model
    # Input tokens that are not trained, so that only the head's output can change.
    ids = torch.arange(1000, 1008)[None]
    with torch.no_grad():
        adapted = model(ids).logits
        with adapter_disabled(model):
            moved = (adapted - model(ids).logits).abs().amax(dim=(0, 1))
    assert moved[indices].max() > 1e-3
    assert moved[400:].max() == 0
    again = open_run(tmp_path / "run").model
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, adapted)
