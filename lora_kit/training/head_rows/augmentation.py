"""Changed copies of rows: words left out, words that change places (Wei and Zou 2019, EDA)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace

from lora_kit.data.row_sets import Rows, concatenate_rows
from lora_kit.data.rows import Row
from lora_kit.recipe.data import AugmentationSpec
from lora_kit.runtime.hashes import json_sha256

# Words with the white space before them, so that lines and indentation stay.
WORD = re.compile(r"(\s*)(\S+)")


def changed_text(text: str, spec: AugmentationSpec, generator: random.Random) -> str:
    """Return a text with words left out and moved; white space stays with its place.

    Args:
        text: text of at least one word.
        spec: the recipe's `data.augmentation`.
        generator: source of the changes.
    """
    parts = WORD.findall(text)
    words = [word for _, word in parts]
    for _ in range(round(spec.swaps * len(words) / 2) if len(words) > 1 else 0):
        one, other = generator.sample(range(len(words)), 2)
        words[one], words[other] = words[other], words[one]
    pairs = [(space, word) for (space, _), word in zip(parts, words, strict=True)]
    kept = [pair for pair in pairs if generator.random() >= spec.dropout]
    if not kept:
        kept = [generator.choice(pairs)]
    return "".join(space + word for space, word in kept).strip()


def augmented_rows(rows: Rows, spec: AugmentationSpec, seed: int) -> Rows:
    """Return changed copies of rows: all of them once, then again for each further copy.

    Args:
        rows: training rows of a head that reads a text.
        spec: the recipe's `data.augmentation`.
        seed: the recipe's seed.
    """
    copies = []
    for number in range(1, spec.copies + 1):
        key = [spec.model_dump(), seed, number]
        changed = rows.map_rows(lambda _: True, _change(spec, seed, number), json_sha256(key))
        named = tuple(replace(one, name=f"changed: {one.name}") for one in changed.sources)
        copies.append(replace(changed, sources=named))
    return concatenate_rows(copies)


def _change(spec: AugmentationSpec, seed: int, number: int) -> Callable[[Row], Row]:
    def change(row: Row) -> Row:
        generator = random.Random(f"{seed}/augmentation/{number}/{row.origin}")
        turns = tuple(
            replace(turn, content=changed_text(turn.content, spec, generator))
            for turn in row.messages[:-1]
        )
        origin = f"{row.origin} (changed copy {number})"
        return replace(row, origin=origin, messages=(*turns, row.messages[-1]))

    return change
