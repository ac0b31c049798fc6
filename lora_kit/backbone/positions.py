"""How many tokens a backbone has places for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_kit.backbone.encoder_decoder import is_divided

# What the modules are called that have a vector for each position: BERT, BART and OPT; GPT-2.
LEARNED = re.compile(r"position|\bwpe\b")


def learned_positions(stack: torch.nn.Module) -> int | None:
    """Places of a stack of blocks whose positions are learned; `None` where they are computed."""
    found = [
        module.num_embeddings - _unused(module)
        for name, module in stack.named_modules()
        if isinstance(module, torch.nn.Embedding) and LEARNED.search(name)
    ]
    return min(found, default=None)


def _unused(embedding: torch.nn.Embedding) -> int:
    """The first rows, of no position: OPT counts from `offset`, RoBERTa from behind its filler."""
    behind_filler = 0 if embedding.padding_idx is None else embedding.padding_idx + 1
    return int(getattr(embedding, "offset", behind_filler))


@dataclass(frozen=True)
class Positions:
    """The places of a backbone whose positions are learned, each a vector of its own.

    Behind the last one torch ends with an index error; computed positions (rotary ones, distances)
    go on, and are not limited here.

    Attributes:
        encoder: places of what stands before the answer; `None` without an encoder.
        decoder: of the rest, or of all.
        end: the token that ends what an encoder reads; `None` without one.
    """

    encoder: int | None
    decoder: int | None
    end: int | None

    @classmethod
    def of(cls, model: Any) -> Positions:
        """Those of a model, of its text and not of what else it reads."""
        decoder = learned_positions(model.get_decoder())
        if not is_divided(model):
            return cls(None, decoder, None)
        end = model.generation_config.eos_token_id
        return cls(learned_positions(model.get_encoder()), decoder, end)

    def room(self, input_ids: Sequence[int]) -> int | None:
        """Tokens that can be said behind a text by one stack; `None` where there is no end."""
        # The last one is put nowhere.
        return None if self.decoder is None else max(self.decoder - len(input_ids) + 1, 0)

    def lacking(self, input_ids: Sequence[int], behind: int = 0, before: int = 0) -> str:
        """What a text takes more places than there are for; empty where it fits.

        Args:
            input_ids: of the text.
            behind: tokens that follow it.
            before: virtual tokens.
        """
        rest, source = len(input_ids), 0
        if self.end is not None and self.end in input_ids:
            source = list(input_ids).index(self.end) + 1
            rest -= source
        # The last token that is said is put nowhere.
        for taken, most in (
            (source, self.encoder),
            (before + rest + max(behind - 1, 0), self.decoder),
        ):
            if most is not None and taken > most:
                return f"takes {taken} positions, of which there are {most}"
        return ""
