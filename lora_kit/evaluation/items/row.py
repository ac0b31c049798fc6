"""Multiple-choice rows, as every built-in source of questions returns them."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ChoiceRow:
    """Question with its choices."""

    id: str
    """Slug, the same in every version of the package that has the item."""
    question: str
    choices: tuple[str, ...]
    answer: int
    """Index of the correct answer in `choices`."""
    cluster: str
    """Label shared by items that are not independent, such as versions of one text; else the id."""
    slices: Mapping[str, str]
    """Values by which results are broken down, such as `{"field": "geography"}`."""

    @classmethod
    def draw(
        cls,
        identifier: str,
        question: str,
        right: str,
        wrong: Sequence[str],
        slices: Mapping[str, str],
        cluster: str | None = None,
    ) -> ChoiceRow:
        """Create a row whose choices are shuffled with its id as the seed."""
        # Seeding with a string does not depend on PYTHONHASHSEED.
        choices = shuffled([right, *wrong], random.Random(identifier))
        return cls(
            id=identifier,
            question=question,
            choices=tuple(choices),
            answer=choices.index(right),
            cluster=identifier if cluster is None else cluster,
            slices=slices,
        )


def shuffled(values: Iterable[str], generator: random.Random) -> list[str]:
    """Return the values in random order, the same in every version of Python."""
    # Python guarantees the sequence of random() across versions, not that of shuffle() or
    # sample().
    return sorted(values, key=lambda _: generator.random())


def slug(text: str) -> str:
    """Return the text as lower-case ASCII words joined by hyphens."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")
