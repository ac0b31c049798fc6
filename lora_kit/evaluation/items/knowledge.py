"""Multiple-choice questions on common facts: what a model knows, and what training may cost it.

`facts.yaml` holds relations (capital of, author of); each fact becomes one item whose wrong answers
are right answers of other subjects. So all four choices look alike, and a model that knows only the
kind of answer, not the fact, stays at one in four.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from lora_kit.evaluation.items import parse
from lora_kit.evaluation.items.row import ChoiceRow, shuffled, slug

CHOICES = 4
"""Choices of an item, the right one included."""


@dataclass(frozen=True)
class Relation:
    """One question asked of many subjects."""

    name: str
    field: str
    question: str
    """Holds `{subject}` where the subject goes."""
    facts: Mapping[str, str]
    """Right answer of each subject."""
    also_true: Mapping[str, tuple[str, ...]]
    """Other subjects' answers that are right, or arguable, for this one: never offered as wrong."""

    @classmethod
    def parse(cls, mapping: Mapping[str, object]) -> Relation:
        """The relation that a YAML mapping describes.

        Raises:
            ValueError: a part is missing or of the wrong type, or `also_true` names a subject or an
                answer that the facts do not have (a slip there would let a right answer be wrong).
        """
        known = {"name", "field", "question", "facts", "also_true"}
        parse.known_keys(mapping, known, f"relation {mapping.get('name')!r}")
        name = parse.text(mapping.get("name"), "the name of a relation")
        question = parse.text(mapping.get("question"), f"{name}.question")
        if "{subject}" not in question:
            raise ValueError(f"{name}.question must hold {{subject}}: {question!r}")
        written = parse.mapping(mapping.get("facts"), f"{name}.facts")
        facts = {
            parse.text(subject, f"a subject of {name}"): parse.text(
                answer, f"{name}.facts[{subject!r}]"
            )
            for subject, answer in written.items()
        }
        also_true = parse.mapping(mapping.get("also_true", {}), f"{name}.also_true")
        return cls(
            name=name,
            field=parse.text(mapping.get("field"), f"{name}.field"),
            question=question,
            facts=facts,
            also_true={
                subject: _known_answers(answers, facts, f"{name}.also_true[{subject!r}]")
                for subject, answers in _checked_subjects(also_true, facts, name).items()
            },
        )


def rows() -> list[ChoiceRow]:
    """All items, in the order of `facts.yaml`; the same on every machine and in every process."""
    relations = [Relation.parse(value) for value in parse.read("facts.yaml")]
    return [row for relation in relations for row in items(relation)]


def items(relation: Relation) -> list[ChoiceRow]:
    """One item for each fact of the relation.

    Raises:
        ValueError: the relation has fewer than four distinct answers, or fewer than three remain
            as wrong answers of a subject.
    """
    answers = sorted(set(relation.facts.values()))
    if len(answers) < CHOICES:
        raise ValueError(
            f"relation {relation.name!r} has {len(answers)} distinct answers; "
            f"an item with {CHOICES} choices needs {CHOICES}"
        )
    return [_item(relation, subject, answers) for subject in relation.facts]


def _item(relation: Relation, subject: str, answers: list[str]) -> ChoiceRow:
    right = relation.facts[subject]
    true = {right, *relation.also_true.get(subject, ())}
    wrong = [answer for answer in answers if answer not in true]
    if len(wrong) < CHOICES - 1:
        raise ValueError(
            f"{relation.name}: also_true leaves {subject!r} only {len(wrong)} wrong answers; "
            f"it needs {CHOICES - 1}"
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
        raise ValueError(f"{name}.also_true has subjects without a fact: {unknown}")
    return also_true


def _known_answers(value: object, facts: Mapping[str, str], where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list of answers, not {value!r}")
    unknown = [answer for answer in value if answer not in facts.values()]
    if unknown:
        raise ValueError(f"{where} has answers that no subject has: {unknown}")
    return tuple(value)
