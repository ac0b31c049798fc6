"""Changed copies of rows: in other words, with words replaced, left out or moved."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from lora_kit.data.row_sets import Rows, concatenate_rows
from lora_kit.data.rows import Row
from lora_kit.data.wordnet import read_synonyms, wordnet_digest, wordnet_folder
from lora_kit.recipe.augmentation import AugmentationSpec
from lora_kit.runtime.hashes import json_sha256
from lora_kit.training.head_rows.paraphrases import Paraphrase, paraphrased_rows

# Words with the white space before them, so that lines and indentation stay.
WORD = re.compile(r"(\s*)(\S+)")
# A word between punctuation marks.
MARKED = re.compile(r"(\W*)(\w+)(\W*)")
FIELD = "data.augmentation.synonyms"
# Beginning of the names of sources of copies.
CHANGED = "changed: "
Synonyms = Mapping[str, tuple[str, ...]]
NO_SYNONYMS: Synonyms = MappingProxyType({})


def changed_text(
    text: str,
    spec: AugmentationSpec,
    generator: random.Random,
    synonyms: Synonyms = NO_SYNONYMS,
) -> str:
    """Return a text with words replaced, moved and left out; white space stays with its place.

    Wei and Zou 2019, arXiv:1901.11196.

    Args:
        text: text of at least one word.
        spec: the recipe's `data.augmentation`.
        generator: source of the changes.
        synonyms: synonyms of lower-case words.
    """
    parts = WORD.findall(text)
    words = [word for _, word in parts]
    if spec.synonyms:
        words = [_replaced(word, spec.synonyms, synonyms, generator) for word in words]
    for _ in range(round(spec.swaps * len(words) / 2) if len(words) > 1 else 0):
        one, other = generator.sample(range(len(words)), 2)
        words[one], words[other] = words[other], words[one]
    pairs = [(space, word) for (space, _), word in zip(parts, words, strict=True)]
    kept = [pair for pair in pairs if generator.random() >= spec.dropout]
    if not kept:
        kept = [generator.choice(pairs)]
    if kept == parts and len(kept) > 1 and spec.dropout:
        # A copy without a change would be a duplicate; so would many of short texts.
        kept.pop(generator.randrange(len(kept)))
    return "".join(space + word for space, word in kept).strip()


def _replaced(word: str, share: float, synonyms: Synonyms, generator: random.Random) -> str:
    """Return a word, or a synonym of it with its marks and its capital letter."""
    marked = MARKED.fullmatch(word)
    others = synonyms.get(marked[2].lower(), ()) if marked else ()
    if marked is None or not others or generator.random() >= share:
        return word
    other = generator.choice(others)
    if marked[2].istitle():
        other = other.capitalize()
    return marked[1] + other + marked[3]


def augmented_rows(
    rows: Rows, spec: AugmentationSpec, seed: int, paraphrases: Sequence[Paraphrase] = ()
) -> tuple[Rows, NDArray[np.int64]]:
    """Return changed copies of rows: all of them once, then again for each further copy.

    Args:
        rows: training rows of a head that reads a text.
        spec: the recipe's `data.augmentation`.
        seed: the recipe's seed.
        paraphrases: texts in other words, if the recipe asks for them; rows without one have no
            copy.

    Returns:
        The copies, and for each the index of its row, (copies,) int64.

    Raises:
        DataError: if synonyms are asked for, and WordNet is not installed; or if a text that was
            written in other words is gone.
    """
    copies, origins = [], []
    wordnet = wordnet_folder(FIELD) if spec.synonyms else None
    for number in range(1, spec.copies + 1):
        own, indices = rows, np.arange(len(rows))
        if spec.paraphrase:
            own, indices = paraphrased_rows(rows, paraphrases, number)
        key = [spec.model_dump(exclude={"paraphrase"}), seed, number]
        key += [wordnet_digest(wordnet)] if wordnet else []
        change = _change(spec, seed, number, wordnet)
        changed = own.map_rows(lambda _: True, change, json_sha256(key))
        named = tuple(replace(one, name=f"{CHANGED}{one.name}") for one in changed.sources)
        copies.append(replace(changed, sources=named))
        origins.append(indices)
    return concatenate_rows(copies), np.concatenate(origins)


def _change(
    spec: AugmentationSpec, seed: int, number: int, wordnet: Path | None
) -> Callable[[Row], Row]:
    def change(row: Row) -> Row:
        generator = random.Random(f"{seed}/augmentation/{number}/{row.origin}")
        synonyms = read_synonyms(wordnet) if wordnet else NO_SYNONYMS
        turns = tuple(
            replace(turn, content=changed_text(turn.content, spec, generator, synonyms))
            for turn in row.messages[:-1]
        )
        origin = f"{row.origin} (changed copy {number})"
        return replace(row, origin=origin, messages=(*turns, row.messages[-1]))

    return change
