"""Arms that give each word a tag: a head that reads the tokens, and the most frequent tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

Words = Sequence[Sequence[tuple[str, int]]]
"""For each text, words with the position of their first token."""


class TokenTagger(torch.nn.Module):
    """Head that reads the tokens of the words, in place of the words themselves."""

    def __init__(self, model: torch.nn.Module):
        """Create the model.

        Args:
            model: model that gives `logits`, (batch, length, tags).
        """
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, words: Words, **batch: torch.Tensor) -> Any:
        """Return the output of the model.

        Args:
            words: words of each text, which are not read.
            batch: `input_ids` and `attention_mask`, each (batch, length), int64.
        """
        del words
        return self.model(**batch)


class FrequentTags(torch.nn.Module):
    """Frequency of the tags of each word, without a model."""

    def __init__(self, other: Sequence[float], known: Mapping[str, Sequence[float]], config: Any):
        """Create the model.

        Args:
            other: logit of each tag for a word that is not known.
            known: logit of each tag by word.
            config: configuration of the backbone, from which the engine reads the context window.
        """
        super().__init__()
        self.config = config
        self.number = {word: row for row, word in enumerate(known, start=1)}
        table = torch.tensor([other, *known.values()], dtype=torch.float64)
        self.table = torch.nn.Parameter(table, requires_grad=False)

    def forward(self, input_ids: torch.Tensor, words: Words, **_: Any) -> SimpleNamespace:
        """Return the logits of the tags at the first token of each word.

        Args:
            input_ids: (batch, length), int64; only its shape is used.
            words: words of each text.

        Returns:
            `logits`: (batch, length, tags), float64; those of an unknown word elsewhere.
        """
        numbers = torch.zeros_like(input_ids)
        for row, of_text in enumerate(words):
            for word, start in of_text:
                numbers[row, start] = self.number.get(word, 0)
        return SimpleNamespace(logits=self.table[numbers])
