"""The part of a model's hidden states that a head reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from lora_kit.backbone.heads import pad_right
from lora_kit.backbone.load import Backbone
from lora_kit.modeling.model_inputs import to_device
from lora_kit.modeling.modes import eval_mode
from lora_kit.runtime.errors import AdapterError

if TYPE_CHECKING:
    from peft import PeftModel

# Upper bound of the difference between two float32 computations of a head on one input.
TOLERANCE = 1e-4

# Maps a head's input, (batch, hidden) or (batch, length, hidden), and the last position of each
# row, (batch,), to what the outputs depend on.
Pick = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def pick_of_head(backbone: Backbone, model: PeftModel, rows: Sequence[Sequence[int]]) -> Pick:
    """Return what finds the part of the head's input that its outputs depend on.

    Args:
        backbone: backbone of the model.
        model: the backbone with its head and adapter.
        rows: token ids of some texts, with which the parts are tried.

    Raises:
        AdapterError: if the inputs of the head cannot be identified in this architecture.
    """
    assert backbone.head is not None
    head, pad = backbone.model.get_submodule(backbone.head.module), backbone.tokenizer.pad_token_id
    batch = to_device(pad_right(rows, pad), backbone.model.device)
    with eval_mode(model), torch.no_grad(), recorded_inputs(head) as inputs:
        logits = model(**batch).logits.float()
        last = last_positions(batch["input_ids"], pad)
        return find_pick(backbone, head, inputs.pop().float(), last, logits)


def last_positions(input_ids: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """Return the position at which a decoder's head is read: the last token that is not padding.

    If a turn ends with the padding token, this is the token before it, as in transformers.

    Args:
        input_ids: (batch, length) int64.
        pad_token_id: id of the padding token.

    Returns:
        (batch,) int64.
    """
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    return (places * (input_ids != pad_token_id)).argmax(dim=1)


@contextmanager
def recorded_inputs(head: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Yield a list to which each forward pass of a head adds its input."""
    recorded: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _module, inputs: recorded.append(inputs[0]))
    try:
        yield recorded
    finally:
        handle.remove()


def find_pick(
    backbone: Backbone,
    head: torch.nn.Module,
    hidden: torch.Tensor,
    last: torch.Tensor,
    logits: torch.Tensor,
) -> Pick:
    """Find the part of the head's input that determines its logits, by trying the known ones.

    The input of an encoder's head is already pooled, or its first position is read; a decoder's
    head is applied at every position, and the last one is read. A head of words is applied at
    every position.

    Args:
        backbone: backbone of the head.
        head: the head.
        hidden: (batch, hidden) or (batch, length, hidden) float32, input of the head.
        last: (batch,) int64, last position of each row.
        logits: (batch, classes), or (batch, length, tags) of words, float32, logits of the model.
    """

    def whole(hidden: torch.Tensor, _last: torch.Tensor) -> torch.Tensor:
        return hidden

    def last_position(hidden: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        return hidden[torch.arange(len(hidden)), last]

    def first_position(hidden: torch.Tensor, _last: torch.Tensor) -> torch.Tensor:
        return hidden[:, :1]

    is_whole = hidden.dim() == 2 or logits.dim() == 3
    for pick in [whole] if is_whole else [last_position, first_position]:
        try:
            candidate = head(pick(hidden, last))
        except (IndexError, RuntimeError):
            continue  # a head that expects sequences was given single positions
        is_same_shape = candidate.shape == logits.shape
        if is_same_shape and torch.allclose(candidate.float(), logits, atol=TOLERANCE):
            return pick
    raise AdapterError(
        "adapter.method: `head` cannot identify the inputs of the head in this architecture (got "
        f"{type(backbone.model).__name__}). Fix: set lora"
    )
