"""Timing a micro batch predicts the duration of a training and leaves no changes."""

from typing import Any

import numpy as np
import pytest
import torch

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.data.dataset import prepare
from lora_kit.data.prepared import PreparedData
from lora_kit.data.supervision import Example
from lora_kit.preflight.show_estimate import format_duration
from lora_kit.preflight.step_timing import StepTiming, estimate_duration, time_micro_batch
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.training import TrainingSpec
from lora_kit.runtime.errors import TrainingError
from lora_kit.training.micro_batcher import MicroBatcher
from tests.training_rows import training_rows


def data_of(recipe: Recipe, backbone: Backbone) -> PreparedData:
    rows, _ = training_rows(recipe.data, recipe.seed)
    return prepare(rows, backbone.tokenizer, recipe.data)


# Four examples per step, all in one forward pass.
FOURS = MicroBatcher(share=4, rows=4)


def state_of(model: Any) -> dict[str, Any]:
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": [p.grad for p in model.parameters()],
        "random": torch.get_rng_state(),
        "training": [module.training for module in model.modules()],
        "checkpointing": model.is_gradient_checkpointing,
        "hooks": len(model.get_input_embeddings()._forward_hooks),
    }


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_is_left_changed(
    tiny_backbone: Backbone, tiny_recipe: Recipe, checkpointing: bool
) -> None:
    model = attach(tiny_backbone, tiny_recipe.adapter, seed=0)
    model.eval()
    model.get_input_embeddings().train()  # modules keep modes of their own
    kept = next(p for p in model.parameters() if p.requires_grad)
    kept.grad = torch.ones_like(kept)
    before = state_of(model)
    found = time_micro_batch(
        model, tiny_backbone, data_of(tiny_recipe, tiny_backbone), FOURS, checkpointing
    )
    after = state_of(model)
    assert found.tokens > 0
    assert 0 < found.forward_seconds < found.seconds
    for name, value in before["weights"].items():
        assert torch.equal(value, after["weights"][name]), name
    assert all(a is b for a, b in zip(before["gradients"], after["gradients"], strict=True))
    assert torch.equal(kept.grad, torch.ones_like(kept))
    assert torch.equal(before["random"], after["random"])
    for name in ("training", "checkpointing", "hooks"):
        assert before[name] == after[name], name


def test_dropout_is_tried_out_and_its_randomness_put_back(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    adapter = tiny_recipe.adapter.model_copy(update={"dropout": 0.5})
    model = attach(tiny_backbone, adapter, seed=0)
    before = torch.get_rng_state()
    time_micro_batch(model, tiny_backbone, data_of(tiny_recipe, tiny_backbone), FOURS, False)
    assert torch.equal(before, torch.get_rng_state())


def test_an_adapter_that_no_gradient_reaches_is_refused(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    model = attach(tiny_backbone, tiny_recipe.adapter, seed=0)
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    with pytest.raises(TrainingError, match="no gradient reaches the adapter"):
        time_micro_batch(model, tiny_backbone, data_of(tiny_recipe, tiny_backbone), FOURS, False)


def of_length(length: int) -> Example:
    return Example(tuple(range(length)), tuple(range(length)))


def test_a_steps_examples_are_cut_by_length_rows_and_tokens() -> None:
    examples = [of_length(n) for n in (5, 50, 6, 40, 7, 30)]
    lengths = np.array([5, 50, 6, 40, 7, 30], dtype=np.int32)

    def cut(tokens: int | None = None, packing: bool = False) -> list[list[int]]:
        batcher = MicroBatcher(4, 4 if packing else 2, tokens, packing)
        passes = batcher.passes(lengths)
        read = [[len(e.input_ids) for e in batcher.read(one, examples)] for one in passes]
        padded = [sum(one) if packing else len(one) * max(one) for one in read]
        assert [one.tokens for one in passes] == padded
        return read

    assert cut() == [[50, 40], [6, 5], [30], [7]]
    assert cut(tokens=60) == [[50], [40], [6, 5], [30], [7]]
    assert cut(tokens=4) == [[50], [40], [6], [5], [30], [7]]
    assert cut(tokens=60, packing=True) == [[50, 6], [40, 5], [30, 7]]


def test_steps_are_cut_as_the_training_cuts_them(tiny_recipe: Recipe) -> None:
    recipe = tiny_recipe.model_copy(
        update={"training": TrainingSpec(batch_size=8, micro_batch_size=2)}
    )
    device = torch.device("cpu")
    assert MicroBatcher.of(recipe, 2, device, "sdpa") == MicroBatcher(share=4, rows=2)
    packing = recipe.data.model_copy(update={"packing": True, "max_length": 64})
    packed = recipe.model_copy(update={"data": packing})
    assert MicroBatcher.of(packed, 1, device, "sdpa") == MicroBatcher(8, 8, 64, packing=True)


def test_a_pack_is_tried_out_where_the_training_packs(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    model = attach(tiny_backbone, tiny_recipe.adapter, seed=0)
    data = data_of(tiny_recipe, tiny_backbone)
    batcher = MicroBatcher(4, 4, int(data.lengths.max()) * 2, packing=True)
    found = time_micro_batch(model, tiny_backbone, data, batcher, checkpointing=False)
    assert found.rows == 1
    assert found.tokens in {one.tokens for one in batcher.passes(data.lengths)}


def test_time_goes_by_padded_tokens_epochs_and_validations() -> None:
    measured = StepTiming(rows=2, tokens=100, forward_seconds=1.0, seconds=4.0, peak_memory=None)
    lengths, held_out = np.array([50, 40, 6, 5], np.int32), np.array([25], np.int32)
    spec = TrainingSpec(batch_size=4, epochs=3.0)
    took = estimate_duration(measured, lengths, held_out, spec, MicroBatcher(4, 2))
    assert took.training == pytest.approx((100 + 12) * 3 * 0.04)
    assert took.validation == pytest.approx(2 * 25 * 0.01)
    spec = TrainingSpec(batch_size=4, epochs=3.0, eval_steps=2)
    more = estimate_duration(measured, lengths, held_out, spec, MicroBatcher(4, 2), steps=6)
    assert more.validation == pytest.approx(5 * 25 * 0.01)
    shared = estimate_duration(measured, lengths, held_out, spec, MicroBatcher(2, 2), processes=2)
    assert shared.training == pytest.approx(took.training / 2)


@pytest.mark.parametrize(
    ("seconds", "words"), [(12.3, "12 s"), (600, "10 min"), (7500, "2 h 05 min")]
)
def test_durations_are_formatted_as_text(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words
