"""Multiple-choice questions on common facts, to measure knowledge and its loss in training.

`facts.yaml` holds relations (capital of, author of). Each fact becomes one item whose wrong answers
are correct answers of other subjects: all four choices look alike, and a model that knows the kind
of answer but not the fact scores one in four.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from lora_kit.evaluation.items import parse
from lora_kit.evaluation.items.row import ChoiceRow, shuffled, slug

CHOICES = 4
"""Choices of an item, the correct one included."""


@dataclass(frozen=True)
class Relation:
    """Question about many subjects."""

    name: str
    field: str
    question: str
    """Question with the placeholder `{subject}`."""
    facts: Mapping[str, str]
    """Correct answer by subject."""
    also_true: Mapping[str, tuple[str, ...]]
    """Answers of other subjects that are correct or arguable, by subject; never offered as wrong
    answers."""

    @classmethod
    def parse(cls, mapping: Mapping[str, object]) -> Relation:
        """Parse a relation from a YAML mapping.

        Raises:
            ValueError: if a field is missing or has the wrong type, or `also_true` names a subject
                or an answer that is not in the facts, which would offer a correct answer as wrong.
        """
        known = {"name", "field", "question", "facts", "also_true"}
        parse.require_known_keys(mapping, known, f"relation {mapping.get('name')!r}")
        name = parse.require_text(mapping.get("name"), "name of a relation")
        question = parse.require_text(mapping.get("question"), f"{name}.question")
        if "{subject}" not in question:
            raise ValueError(
                f"{name}.question: no placeholder {{subject}} (got {question!r}). Fix: add "
                "{subject}"
            )
        written = parse.require_mapping(mapping.get("facts"), f"{name}.facts")
        facts = {
            parse.require_text(subject, f"a subject of {name}"): parse.require_text(
                answer, f"{name}.facts[{subject!r}]"
            )
            for subject, answer in written.items()
        }
        also_true = parse.require_mapping(mapping.get("also_true", {}), f"{name}.also_true")
        return cls(
            name=name,
            field=parse.require_text(mapping.get("field"), f"{name}.field"),
            question=question,
            facts=facts,
            also_true={
                subject: _known_answers(answers, facts, f"{name}.also_true[{subject!r}]")
                for subject, answers in _checked_subjects(also_true, facts, name).items()
            },
        )


def knowledge_rows() -> list[ChoiceRow]:
    """Return all items, in the order of `facts.yaml`; the same on every machine."""
    relations = [Relation.parse(value) for value in parse.read_item_file("facts.yaml")]
    return [row for relation in relations for row in relation_rows(relation)]


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


def _checked_subjects(
    also_true: Mapping[str, object], facts: Mapping[str, str], name: str
) -> Mapping[str, object]:
    unknown = sorted(also_true.keys() - facts.keys())
    if unknown:
        raise ValueError(
            f"{name}.also_true: subjects without a fact (got {unknown}). Fix: correct the names"
        )
    return also_true


def _known_answers(value: object, facts: Mapping[str, str], where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(
            f"{where}: must be a list of answers (got {value!r}). Fix: write [answer, ...]"
        )
    unknown = [answer for answer in value if answer not in facts.values()]
    if unknown:
        raise ValueError(
            f"{where}: answers that no subject has (got {unknown}). Fix: correct the answers"
        )
    return tuple(value)
