"""Questions written one by one in YAML files, grouped by kind, with correct and wrong answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from lora_kit.evaluation.items.parse import Text, read_entries
from lora_kit.evaluation.items.row import ChoiceRow, slug
from lora_kit.recipe.section import Section

BLANK = "___"
"""Placeholder in a question that the answers fill."""


@dataclass(frozen=True)
class WrittenQuestion:
    """Question of a kind, with its answers."""

    id: str
    """`kind/name`, each a slug."""
    kind: str
    question: str
    right: str
    wrong: tuple[str, ...]
    cluster: str

    def row(self, slice_name: str) -> ChoiceRow:
        """Return the question as a multiple-choice row, with the kind as a slice of this name."""
        return ChoiceRow.draw(
            self.id, self.question, self.right, self.wrong, {slice_name: self.kind}, self.cluster
        )


class WrittenItem(Section):
    """Item of a kind: its own question, or its part of the kind's question, and its answers."""

    question: Text | None = None
    about: Text | None = None
    right: Text
    wrong: Annotated[tuple[Text, ...], Field(min_length=1)]
    cluster: Text | None = None


class WrittenGroup(Section):
    """Items of one kind."""

    kind: Text
    ask: Annotated[Text, Field(pattern=r"\{about\}")] | None = None
    """Question of the kind, with `{about}` in place of the item's own part; `None` if every item
    has its own `question`."""
    items: dict[Text, WrittenItem]

    def questions(self) -> Iterator[WrittenQuestion]:
        """Yield the questions, in order.

        Raises:
            ValueError: if a name is no slug, an item has not one part of a question, or an answer
                occurs twice.
        """
        for name, item in self.items.items():
            where = f"{self.kind}.{name}"
            if slug(name) != name:
                raise ValueError(
                    f"{where}: the name must be a slug (got {name!r}). Fix: write {slug(name)!r}"
                )
            own, other = (
                (item.question, item.about) if self.ask is None else (item.about, item.question)
            )
            if own is None or other is not None:
                raise ValueError(
                    f"{where}: needs `about` if the kind has `ask`, else `question` (got "
                    f"{sorted(item.model_fields_set)}). Fix: write the other one"
                )
            if own.count(BLANK) > 1:
                raise ValueError(
                    f"{where}: more than one blank (got {own!r}). Fix: keep one {BLANK}"
                )
            right, *wrong = (
                own.replace(BLANK, form) if BLANK in own else form
                for form in (item.right, *item.wrong)
            )
            if len({choice.casefold() for choice in (right, *wrong)}) < 1 + len(wrong):
                raise ValueError(
                    f"{where}: duplicate answers (got {[right, *wrong]}). Fix: change one of them"
                )
            identifier = f"{slug(self.kind)}/{name}"
            yield WrittenQuestion(
                id=identifier,
                kind=self.kind,
                question=own if self.ask is None else self.ask.replace("{about}", own),
                right=right,
                wrong=tuple(wrong),
                cluster=item.cluster or identifier,
            )


def read_written_questions(file: str) -> list[WrittenQuestion]:
    """Return all questions of a YAML file of this folder, in file order."""
    return [one for group in read_entries(file, WrittenGroup) for one in group.questions()]
