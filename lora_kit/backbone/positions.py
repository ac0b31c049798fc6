"""Number of positions of a backbone with learned position embeddings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_kit.backbone.encoder_decoder import is_encoder_decoder

# Names of modules with one embedding per position: BERT, BART and OPT; GPT-2.
LEARNED_POSITION_NAMES = re.compile(r"position|\bwpe\b")


def learned_positions(stack: torch.nn.Module) -> int | None:
    """Return the number of learned positions of a stack of blocks; `None` if not learned."""
    counts = [
        module.num_embeddings - _unused_rows(module)
        for name, module in stack.named_modules()
        if isinstance(module, torch.nn.Embedding) and LEARNED_POSITION_NAMES.search(name)
    ]
    return min(counts, default=None)


def _unused_rows(embedding: torch.nn.Embedding) -> int:
    """Count first rows without a position: OPT has an `offset`, RoBERTa counts after padding."""
    after_padding = 0 if embedding.padding_idx is None else embedding.padding_idx + 1
    return int(getattr(embedding, "offset", after_padding))


def trained_window(model: Any) -> int | None:
    """Return the longest text, in tokens, that a model's configuration is made for.

    Computed positions go on beyond it, but the model has seen none of them; `None` if unknown.
    """
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return window if isinstance(window, int) and window > 0 else None


@dataclass(frozen=True)
class PositionLimits:
    """Numbers of learned positions of a backbone.

    Beyond the last learned position, torch raises an index error. Computed positions (rotary,
    relative) have no limit here.

    Attributes:
        encoder: number of positions of the encoder; `None` without an encoder, or if computed.
        decoder: number of positions of the decoder; `None` if computed.
        end: token id that ends the encoder's input; `None` without an encoder.
    """

    encoder: int | None
    decoder: int | None
    end: int | None

    @classmethod
    def of(cls, model: Any) -> PositionLimits:
        """Read the limits of a model's text stacks (no vision or audio encoder)."""
        decoder = learned_positions(model.get_decoder())
        if not is_encoder_decoder(model):
            return cls(None, decoder, None)
        end = model.generation_config.eos_token_id
        return cls(learned_positions(model.get_encoder()), decoder, end)

    def max_new_tokens(self, input_ids: Sequence[int]) -> int | None:
        """Return how many tokens a decoder-only model can generate after a text.

        Args:
            input_ids: token ids of the text.

        Returns:
            Number of tokens; `None` without a limit.
        """
        # The last generated token is never an input.
        return None if self.decoder is None else max(self.decoder - len(input_ids) + 1, 0)

    def overflow(
        self, input_ids: Sequence[int], new_tokens: int = 0, virtual_tokens: int = 0
    ) -> str:
        """Describe by how much a text exceeds the positions; empty if the text fits.

        Args:
            input_ids: token ids of the text.
            new_tokens: number of tokens generated after the text.
            virtual_tokens: number of virtual tokens before the text.
        """
        rest, source = len(input_ids), 0
        if self.end is not None and self.end in input_ids:
            source = list(input_ids).index(self.end) + 1
            rest -= source
        # The last generated token is never an input.
        for needed, available in (
            (source, self.encoder),
            (virtual_tokens + rest + max(new_tokens - 1, 0), self.decoder),
        ):
            if available is not None and needed > available:
                return f"needs {needed} positions (available: {available})"
        return ""
