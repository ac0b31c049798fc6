"""How many tokens a backbone has places for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_kit.encoder_decoder import is_divided

# What the modules are called that have a vector for each position: BERT, BART and OPT; GPT-2.
LEARNED = re.compile(r"position|\bwpe\b")


@dataclass(frozen=True)
class Positions:
    """The places of a backbone whose positions are learned, each a vector of its own.

    Behind the last one torch ends with an index error; computed positions (rotary ones, distances)
    go on, and are not limited here.

    Attributes:
        most: how many there are.
        end: the token that ends what an encoder reads; `None` without one.
    """

    most: int
    end: int | None

    @classmethod
    def of(cls, model: Any) -> Positions | None:
        """Those of a model; `None` where positions are computed."""
        learned = [
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Embedding) and LEARNED.search(name)
        ]
        most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if not learned or most is None:
            return None
        return cls(most, model.generation_config.eos_token_id if is_divided(model) else None)

    def taken(self, input_ids: Sequence[int], behind: int = 0) -> int:
        """How many places a text takes, in the stack that reads more of it.

        Args:
            input_ids: of the text.
            behind: tokens that follow it.
        """
        length = len(input_ids) + behind
        if self.end is None or self.end not in input_ids:
            return length
        source = list(input_ids).index(self.end) + 1
        return max(source, length - source)
