"""Generation of a batch takes no memory that the batch does not need."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from lora_kit.backbone.load import Backbone
from lora_kit.modeling.generation import contiguous_head, generate_batch


def head_inputs(model: Any, rows: int) -> list[torch.Tensor]:
    """Return the hidden states that the head is given while rows of several tokens go on."""
    seen: list[torch.Tensor] = []

    def note(_module: Any, inputs: tuple[torch.Tensor, ...], _output: Any) -> None:
        seen.append(inputs[0])

    handle = model.get_output_embeddings().register_forward_hook(note)
    try:
        generate_batch(model, [[5, 6, 7, 8]] * rows, [], 0, 2)
    finally:
        handle.remove()
    return seen


def test_the_head_is_not_given_slices(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch multiplies a slice of rows one by one, each in bfloat16 with its copy of the weight."""
    model = tiny_backbone.model
    seen = head_inputs(model, rows=3)
    assert [tuple(one.shape[:2]) for one in seen] == [(3, 1), (3, 1)]
    assert all(one.is_contiguous() for one in seen)
    # A slice of one row counts as contiguous, but its strides fold no dimensions.
    (one, *_) = head_inputs(model, rows=1)
    assert one.stride(0) == one.shape[-1]
    monkeypatch.setattr("lora_kit.modeling.generation.contiguous_head", lambda model: nullcontext())
    # Otherwise the guard is not needed any more.
    assert not head_inputs(model, rows=3)[0].is_contiguous()


def test_the_guard_is_gone_after_an_error(tiny_backbone: Backbone) -> None:
    head = tiny_backbone.model.get_output_embeddings()
    with pytest.raises(KeyError), contiguous_head(tiny_backbone.model):
        raise KeyError
    assert not head._forward_pre_hooks
