"""Multiple-choice questions on common facts, to measure knowledge and its loss in training.

`facts.yaml` holds relations (capital of, author of). Each fact becomes one item whose wrong answers
are correct answers of other subjects: all four choices look alike, and a model that knows the kind
of answer but not the fact scores one in four.
"""

from __future__ import annotations

import random

from pydantic import Field, model_validator

from lora_kit.evaluation.items.parse import Text, read_entries
from lora_kit.evaluation.items.row import ChoiceRow, shuffled, slug
from lora_kit.recipe.section import Section

CHOICES = 4
"""Choices of an item, the correct one included."""


class Relation(Section):
    """Question about many subjects."""

    name: Text
    field: Text
    question: Text
    """Question with the placeholder `{subject}`."""
    facts: dict[Text, Text]
    """Correct answer by subject."""
    also_true: dict[Text, tuple[Text, ...]] = Field(default={})
    """Answers of other subjects that are correct or arguable, by subject; never offered as wrong
    answers."""

    @model_validator(mode="after")
    def _consistent(self) -> Relation:
        if "{subject}" not in self.question:
            raise ValueError(
                f"question: no placeholder {{subject}} (got {self.question!r}). Fix: add "
                "{subject}"
            )
        # A misspelt name would offer a correct answer as wrong.
        if unknown := sorted(self.also_true.keys() - self.facts.keys()):
            raise ValueError(
                f"also_true: subjects without a fact (got {unknown}). Fix: correct the names"
            )
        for subject, answers in self.also_true.items():
            if unknown := sorted(set(answers) - set(self.facts.values())):
                raise ValueError(
                    f"also_true[{subject!r}]: answers that no subject has (got {unknown}). Fix: "
                    "correct the answers"
                )
        return self


def knowledge_rows() -> list[ChoiceRow]:
    """Return all items, in the order of `facts.yaml`; the same on every machine."""
    return [row for one in read_entries("facts.yaml", Relation) for row in relation_rows(one)]


def relation_rows(relation: Relation) -> list[ChoiceRow]:
    """Return one item for each fact of a relation.

    Raises:
        ValueError: if the relation has fewer than four distinct answers, or a subject fewer than
            three wrong answers.
    """
    answers = sorted(set(relation.facts.values()))
    if len(answers) < CHOICES:
        raise ValueError(
            f"{relation.name}.facts: items need {CHOICES} distinct answers (got {len(answers)}). "
            "Fix: add facts"
        )
    return [_item(relation, subject, answers) for subject in relation.facts]


def _item(relation: Relation, subject: str, answers: list[str]) -> ChoiceRow:
    right = relation.facts[subject]
    true = {right, *relation.also_true.get(subject, ())}
    wrong = [answer for answer in answers if answer not in true]
    if len(wrong) < CHOICES - 1:
        raise ValueError(
            f"{relation.name}.also_true[{subject!r}]: an item needs {CHOICES - 1} wrong answers "
            f"(got {len(wrong)}). Fix: add facts, or shorten also_true"
        )
    # Seeding with a string does not depend on PYTHONHASHSEED.
    generator = random.Random(f"{relation.name}/{subject}")
    choices = shuffled([right, *shuffled(wrong, generator)[: CHOICES - 1]], generator)
    identifier = f"{slug(relation.name)}/{slug(subject)}"
    return ChoiceRow(
        id=identifier,
        question=relation.question.replace("{subject}", subject),
        choices=tuple(choices),
        answer=choices.index(right),
        cluster=identifier,
        slices={"field": relation.field},
    )
