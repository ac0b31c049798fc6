"""Texts that a language model writes again, and whether one may stand in place of its original."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lora_kit.data.rows import Message
from lora_kit.data.templates import control_tokens
from lora_kit.data.tokenization import tokenize_prompt
from lora_kit.modeling.generation import Generator

# A text written again may have twice its original's tokens plus this many.
SLACK = 16
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
Similarity = Callable[[str, Sequence[str]], float | None]


@dataclass(frozen=True)
class Request:
    """Text that is to be written again.

    Attributes:
        messages: turns that ask for it.
        original: text as it is.
    """

    messages: tuple[Message, ...]
    original: str


@dataclass(frozen=True)
class Rewritten:
    """Text that was written again.

    Attributes:
        text: new text; `None` if it did not end within its limit.
        similarity: chrF against the original, 0 to 100.
        is_similar: true if it is as similar as was asked for.
        keeps_numbers: true if it has the original's numbers, and no control tokens.
    """

    text: str | None
    similarity: float
    is_similar: bool
    keeps_numbers: bool

    @property
    def is_faithful(self) -> bool:
        """Return true if it may stand in place of the original."""
        return self.is_similar and self.keeps_numbers


def rewrite(
    generator: Generator,
    requests: Sequence[Request],
    least: float,
    similarity: Similarity,
    max_length: int,
    sampled: bool = False,
) -> list[Rewritten | None]:
    """Let a language model write texts again.

    Args:
        generator: generator of a language model.
        requests: texts and the prompts that ask for them.
        least: smallest similarity of a faithful text.
        similarity: chrF of a text against references, 0 to 100.
        max_length: largest number of prompt tokens.
        sampled: sample from the model's distribution, by torch's random state, instead of the most
            likely tokens.

    Returns:
        A text for each request; `None` for a prompt that is too long.
    """
    tokenizer = generator.backbone.tokenizer
    control = control_tokens(tokenizer)
    prompts = [tokenize_prompt(list(one.messages), tokenizer) for one in requests]
    asked = [n for n, prompt in enumerate(prompts) if len(prompt) <= max_length]
    limits = [2 * len(tokenizer(requests[n].original)["input_ids"]) + SLACK for n in asked]
    texts = generator.texts([prompts[n] for n in asked], limits, sampled) if asked else []
    found: list[Rewritten | None] = [None] * len(requests)
    for number, generated in zip(asked, texts, strict=True):
        original, text = requests[number].original, (generated or "").strip()
        score = (similarity(text, [original]) if text else None) or 0.0
        keeps_numbers = sorted(_NUMBER.findall(text)) == sorted(_NUMBER.findall(original))
        has_control = bool(control and control.search(text))
        is_similar = text != "" and score >= least
        found[number] = Rewritten(
            text or None, score, is_similar, keeps_numbers and not has_control
        )
    return found
