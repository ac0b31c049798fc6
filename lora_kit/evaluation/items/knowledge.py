"""Multiple-choice questions on common facts: what a model knows, and what training may cost it.

`facts.yaml` holds relations (capital of, author of); each fact becomes one item whose wrong answers
are right answers of other subjects. So all four choices look alike, and a model that knows only the
kind of answer, not the fact, stays at one in four.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import yaml

CHOICES = 4
"""Choices of an item, the right one included."""


@dataclass(frozen=True)
class MultipleChoiceRow:
    """One question with its possible answers."""

    id: str
    """`relation/subject` as a slug: the same in every version that holds the fact."""
    question: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right answer in `choices`."""
    field: str
    """Field of knowledge, such as geography."""


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
        unknown = sorted(mapping.keys() - {"name", "field", "question", "facts", "also_true"})
        if unknown:
            raise ValueError(f"relation {mapping.get('name')!r} has unknown keys {unknown}")
        name = _text(mapping.get("name"), "the name of a relation")
        question = _text(mapping.get("question"), f"{name}.question")
        if "{subject}" not in question:
            raise ValueError(f"{name}.question must hold {{subject}}: {question!r}")
        facts = {
            _text(subject, f"a subject of {name}"): _text(answer, f"{name}.facts[{subject!r}]")
            for subject, answer in _mapping(mapping.get("facts"), f"{name}.facts").items()
        }
        also_true = _mapping(mapping.get("also_true", {}), f"{name}.also_true")
        return cls(
            name=name,
            field=_text(mapping.get("field"), f"{name}.field"),
            question=question,
            facts=facts,
            also_true={
                subject: _known_answers(answers, facts, f"{name}.also_true[{subject!r}]")
                for subject, answers in _checked_subjects(also_true, facts, name).items()
            },
        )


def rows() -> list[MultipleChoiceRow]:
    """All items, in the order of `facts.yaml`; the same on every machine and in every process."""
    text = resources.files("lora_kit.evaluation.items").joinpath("facts.yaml").read_text("utf-8")
    return [row for relation in yaml.safe_load(text) for row in items(Relation.parse(relation))]


def items(relation: Relation) -> list[MultipleChoiceRow]:
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


def _item(relation: Relation, subject: str, answers: list[str]) -> MultipleChoiceRow:
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
    choices = _shuffled([right, *_shuffled(wrong, generator)[: CHOICES - 1]], generator)
    return MultipleChoiceRow(
        id=f"{_slug(relation.name)}/{_slug(subject)}",
        question=relation.question.replace("{subject}", subject),
        choices=tuple(choices),
        answer=choices.index(right),
        field=relation.field,
    )


def _shuffled(answers: list[str], generator: random.Random) -> list[str]:
    # Python promises the sequence of random() across its versions, not that of shuffle() or
    # sample(); an item must not change with the interpreter.
    return sorted(answers, key=lambda _: generator.random())


def _slug(text: str) -> str:
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")


def _text(value: object, where: str) -> str:
    # YAML reads 1945 as a number and no as false; both must be quoted to stay what was written.
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} must be text (quote numbers, yes and no), not {value!r}")
    return value


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a mapping, not {value!r}")
    return value


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
