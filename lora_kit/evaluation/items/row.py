"""A multiple-choice item: what every source of questions gives."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ChoiceRow:
    """One question with its possible answers."""

    id: str
    """A slug: the same in every version that holds the item."""
    question: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right answer in `choices`."""
    cluster: str
    """Shared by items that are not independent, such as versions of one text; else the id."""
    slices: Mapping[str, str]
    """What the item can be grouped by, such as `{"field": "geography"}`."""

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
        """An item whose choices are in an order that depends on its id alone."""
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
    """The values in a drawn order, the same in every version of Python."""
    # Python promises the sequence of random() across its versions, not that of shuffle() or
    # sample(); an item must not change with the interpreter.
    return sorted(values, key=lambda _: generator.random())


def slug(text: str) -> str:
    """Lower-case ASCII words joined by hyphens."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")
