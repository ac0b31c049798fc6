"""Synonyms of English words, from the files of WordNet where they are installed.

The files are those of WordNet 3 (`index.noun`, `data.noun` and so on, wndb(5WN)), which
distributions and NLTK install. NLTK's own reader needs a further file, which distributions leave
out.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from lora_kit.runtime.errors import DataError
from lora_kit.runtime.hashes import file_sha256, json_sha256

PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
# Shorter words are mostly function words, of which WordNet knows other senses: `in`, an inch.
MIN_LETTERS = 4


def wordnet_folder(field: str) -> Path:
    """Return the folder of WordNet's files.

    Args:
        field: field of the recipe that needs them.

    Raises:
        DataError: if they are not found.
    """
    for folder in _places():
        if (folder / "index.noun").is_file():
            return folder
    raise DataError(
        f"{field}: WordNet is not installed (got no index.noun in "
        f"{', '.join(map(str, _places()))}). Fix: apt install wordnet-base, or set WNSEARCHDIR to "
        "the folder of its files"
    )


def _places() -> tuple[Path, ...]:
    if own := os.environ.get("WNSEARCHDIR"):
        return (Path(own),)
    named = os.environ.get("NLTK_DATA", "").split(os.pathsep)
    downloaded = [*(Path(one) for one in named if one), Path.home() / "nltk_data"]
    return (
        Path("/usr/share/wordnet"),
        *(place / "corpora" / "wordnet" for place in downloaded),
    )


@cache
def wordnet_digest(folder: Path) -> str:
    """Return the sha256 of WordNet's files."""
    return json_sha256([file_sha256(folder / f"data.{part}") for part in PARTS_OF_SPEECH])


@cache
def read_synonyms(folder: Path) -> Mapping[str, tuple[str, ...]]:
    """Return the synonyms of lower-case words of at least four letters, sorted.

    They are the single words that share the most frequent sense of a word as a noun, a verb, an
    adjective or an adverb.

    Args:
        folder: folder of WordNet's files.

    Raises:
        DataError: if a file is missing, or not in WordNet's format.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for part in PARTS_OF_SPEECH:
        try:
            senses = dict(_senses(folder / f"data.{part}"))
            for word, first in _first_senses(folder / f"index.{part}"):
                found[word].update(other for other in senses[first] if other != word)
        except (OSError, ValueError, LookupError) as error:
            raise DataError(
                f"{folder}: not the files of WordNet 3 (got {error!r}, in *.{part}). Fix: install "
                "them again"
            ) from error
    return {word: tuple(sorted(others)) for word, others in found.items() if others}


def _senses(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the place and the single words of each sense."""
    for line in _entries(path):
        fields = line.split(" ")
        count = int(fields[3], 16)
        # Adjectives may end in a marker of their position, such as `(a)`.
        words = [word.partition("(")[0] for word in fields[4 : 4 + 2 * count : 2]]
        yield fields[0], [word for word in words if word.isalpha() and word.islower()]


def _first_senses(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each single word with the place of its most frequent sense."""
    for line in _entries(path):
        fields = line.split()
        word, pointers = fields[0], int(fields[3])
        if len(word) >= MIN_LETTERS and word.isalpha():
            yield word, fields[6 + pointers]


def _entries(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as stream:
        # Lines of the licence are indented.
        yield from (line for line in stream if not line.startswith(" "))
