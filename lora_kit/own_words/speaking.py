"""Text from a model, many prompts at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lora_kit.backbone import Backbone
from lora_kit.console import meter
from lora_kit.positions import Positions

# Prompts that are gone on with together: a step takes one token of each.
ROWS = 32


@dataclass(frozen=True)
class Speaker:
    """The base, and where it ends.

    Attributes:
        backbone: no adapter is attached to its model.
        stops: tokens on which it ends.
    """

    backbone: Backbone
    stops: Sequence[int]

    def said(
        self, prompts: Sequence[Sequence[int]], most: Sequence[int], sampled: bool
    ) -> list[str | None]:
        """What it says after each prompt in at most so many tokens; `None` where it did not end."""
        tokenizer = self.backbone.tokenizer
        pad, model = tokenizer.pad_token_id, self.backbone.model
        with meter("the base speaks", len(prompts), visible=len(prompts) > ROWS) as progress:
            found = say_on(model, prompts, self.stops, pad, most, sampled, progress.advance)
        return [
            None if one is None else str(tokenizer.decode(list(one), skip_special_tokens=True))
            for one in found
        ]


def say_on(
    model: Any,
    prompts: Sequence[Sequence[int]],
    stops: Sequence[int],
    pad: int,
    most: Sequence[int],
    sampled: bool = False,
    advance: Callable[[float], None] = lambda _: None,
) -> list[tuple[int, ...] | None]:
    """What a model says after each prompt.

    Args:
        model: that speaks, as it is now.
        prompts: token ids of each, none of them empty.
        stops: tokens on which it ends.
        pad: what short prompts are filled up with, on the left.
        most: tokens that it says at most, of each; fewer where its positions end before.
        sampled: whether it says what it would say (temperature 1, nothing cut off: the distribution
            of the model itself), by torch's random state, or what is most likely.
        advance: told how many prompts were gone on with.

    Returns:
        Of each the tokens without the one that ended it; `None` where it did not end.
    """
    found: dict[int, tuple[int, ...] | None] = {}
    positions = Positions.of(model)
    rooms = [positions.room(prompt) for prompt in prompts]
    bounded = [m if r is None else min(m, r) for m, r in zip(most, rooms, strict=True)]
    # Those of one length together: what is filled up is computed for nothing.
    order = sorted(range(len(prompts)), key=lambda n: (len(prompts[n]), bounded[n], n))
    for some in _together([n for n in order if bounded[n]], bounded, rooms):
        found |= _go_on(model, {n: prompts[n] for n in some}, stops, pad, bounded, sampled)
        advance(len(some))
    return [found.get(n) for n in range(len(prompts))]


def _together(
    order: Sequence[int], most: Sequence[int], rooms: Sequence[int | None]
) -> Iterator[list[int]]:
    """Prompts in their order, the shortest first, a batch at a time.

    All of a batch are gone on with as far as any of them, and none past its positions.
    """
    some: list[int] = []
    for n in order:
        steps, room = max(most[one] for one in (*some, n)), rooms[n]
        if some and (len(some) == ROWS or (room is not None and steps > room)):
            yield some
            some = []
        some.append(n)
    if some:
        yield some


def _go_on(
    model: Any,
    prompts: dict[int, Sequence[int]],
    stops: Sequence[int],
    pad: int,
    most: Sequence[int],
    sampled: bool,
) -> dict[int, tuple[int, ...] | None]:
    width = max(map(len, prompts.values()))
    ids = torch.tensor([[pad] * (width - len(one)) + list(one) for one in prompts.values()])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts.values()])
    device = next(model.parameters()).device
    how: dict[str, Any] = {"do_sample": False}
    if sampled:
        how = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    with torch.no_grad(), _by_itself(model):
        output = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max(most[n] for n in prompts),
            eos_token_id=list(stops),
            pad_token_id=pad,
            **how,
        )
    rows = output[:, width:].tolist()
    return {n: _ended(row[: most[n]], stops) for n, row in zip(prompts, rows, strict=True)}


@contextmanager
def _by_itself(model: Any) -> Iterator[None]:
    """Without the model's own defaults, which bend the distribution or cut it off.

    They are top_k, repetition_penalty and others; what it begins with is kept.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    begins = ("bos_token_id", "decoder_start_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(own, name) for name in begins})
    try:
        yield
    finally:
        model.generation_config = own


def _ended(tokens: list[int], stops: Sequence[int]) -> tuple[int, ...] | None:
    ends = [tokens.index(stop) for stop in stops if stop in tokens]
    return tuple(tokens[: min(ends)]) if ends else None
