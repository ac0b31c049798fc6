"""Prompts are encoded without most of the padding, and give the tokens of transformers."""

from typing import Any

import pytest
import torch

from lora_kit.backbone.load import Backbone
from lora_kit.modeling import prompt_encoding
from lora_kit.modeling.generation import generate_batch
from tests.modeling.test_decoding import PAD, _prompts, _reference

# 3 short prompts, and 3 that are 32 and more tokens longer.
LENGTHS = (5, 43, 9, 38, 7, 41)


def widths_of(model: Any, prompts: list[list[int]], new: int) -> tuple[torch.Tensor, list[Any]]:
    """Return generated tokens, and rows and columns of each forward pass."""
    widths = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda _, inputs, __: widths.append(tuple(inputs[0].shape))
    )
    with torch.no_grad():
        found = generate_batch(model, prompts, [], PAD, new)
    handle.remove()
    return found, widths


def test_rows_of_unlike_lengths_are_encoded_apart(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_encoding, "COMPUTED_COLUMNS", {"cpu": 3 * 43})
    prompts = _prompts(200, LENGTHS)
    found, widths = widths_of(tiny_backbone.model, prompts, 6)
    # The short ones without the 32 of 34 columns that their lanes allow to leave out.
    assert widths[:2] == [(3, 43), (3, 11)]
    assert torch.equal(found, _reference(tiny_backbone.model, prompts, [], 6))


@pytest.mark.parametrize("columns", [8, 40, 10_000])
def test_a_beginning_is_shared_by_rows_of_unlike_lengths(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """A row that is shorter than its part computes the end of the beginning again."""
    monkeypatch.setattr(prompt_encoding, "COMPUTED_COLUMNS", {"cpu": columns})
    beginning = _prompts(200, (20,))[0]
    prompts = [beginning + rest for rest in _prompts(200, (1, 20, 4, 17, 2, 19))]
    expected = _reference(tiny_backbone.model, prompts, [], 6)
    found, widths = widths_of(tiny_backbone.model, prompts, 6)
    assert torch.equal(found, expected)
    computed = [(rows, width) for rows, width in widths[1:] if width > 1]
    assert sum(rows for rows, _ in computed) == len(prompts)
    assert all(rows == 1 or rows * width <= columns for rows, width in computed)


def test_rows_that_end_leave_after_prompts_in_parts(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_encoding, "COMPUTED_COLUMNS", {"cpu": 50})
    prompts = _prompts(200, LENGTHS)
    free = _reference(tiny_backbone.model, prompts, [], 10)
    stops = sorted({int(free[0, 2]), int(free[3, 4])})
    with torch.no_grad():
        found = generate_batch(tiny_backbone.model, prompts, stops, PAD, 10)
    assert torch.equal(found, _reference(tiny_backbone.model, prompts, stops, 10))


@pytest.mark.parametrize(("lengths", "shared"), [((40, 56), 16), ((40, 41), 0)])
def test_half_precision_shares_where_sums_keep_their_order(
    tiny_backbone: Backbone, lengths: tuple[int, int], shared: int
) -> None:
    model = tiny_backbone.model.to(torch.bfloat16)
    beginning = _prompts(200, (24,))[0]
    prompts = [beginning + rest for rest in _prompts(200, tuple(n - 24 for n in lengths))]
    found, widths = widths_of(model, prompts, 4)
    expected = [(1, shared)] if shared else []
    assert [shape for shape in widths if shape[0] == 1] == expected
    assert torch.equal(found, _reference(model, prompts, [], 4))
