"""Knowledge items: each has one correct answer and is the same in every run."""

import os
import random
import re
import subprocess
import sys
from collections import Counter

import pytest

from lora_kit.evaluation.items import knowledge
from lora_kit.evaluation.items.knowledge import CHOICES, Relation
from lora_kit.evaluation.items.parse import read_entry
from lora_kit.evaluation.items.row import ChoiceRow


@pytest.fixture(scope="module")
def rows() -> list[ChoiceRow]:
    return knowledge.knowledge_rows()


def relation(**changes: object) -> Relation:
    capital = {
        "name": "capital",
        "field": "geography",
        "question": "What is the capital of {subject}?",
        "facts": {
            "France": "Paris",
            "Italy": "Rome",
            "Spain": "Madrid",
            "Japan": "Tokyo",
            "Peru": "Lima",
            "São Tomé": "São Tomé city",
        },
    }
    return read_entry(Relation, capital | changes, "a.yaml")


def test_there_are_enough_items_in_enough_fields(rows: list[ChoiceRow]) -> None:
    by_field = Counter(row.slices["field"] for row in rows)
    assert len(rows) >= 360
    assert len(by_field) >= 8
    assert max(by_field.values()) <= 0.2 * len(rows)
    assert len({row.id.split("/")[0] for row in rows}) >= 10


def test_ids_and_questions_are_unique(rows: list[ChoiceRow]) -> None:
    assert len({row.id for row in rows}) == len(rows)
    assert len({row.question for row in rows}) == len(rows)


def test_ids_are_slugs(rows: list[ChoiceRow]) -> None:
    assert "capital/france" in {row.id for row in rows}
    for row in rows:
        assert re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", row.id)


def test_the_choices_are_distinct_also_without_case(rows: list[ChoiceRow]) -> None:
    # Symbols (Co, CO) may differ by case only between relations, never within one item.
    for row in rows:
        assert len({choice.casefold() for choice in row.choices}) == CHOICES, row


def test_the_answer_is_the_right_one_of_its_subject() -> None:
    for row in knowledge.relation_rows(relation()):
        subject = row.question.removeprefix("What is the capital of ").removesuffix("?")
        assert row.choices[row.answer] == relation().facts[subject]


def test_known_facts_survive_the_file(rows: list[ChoiceRow]) -> None:
    # N and 1945 are what YAML likes to read as something else than text.
    right = {row.id: row.choices[row.answer] for row in rows}
    assert right["element-symbol/nitrogen"] == "N"
    assert right["event-year/world-war-ii-end"] == "1945"
    assert right["painter/the-persistence-of-memory"] == "Salvador Dalí"


def test_all_answers_of_a_relation_are_also_seen_as_wrong_ones() -> None:
    # Else a model could pick the choice that it never sees elsewhere.
    facts = {f"subject {number}": f"answer {number}" for number in range(40)}
    items = knowledge.relation_rows(relation(facts=facts))
    wrong = {choice for row in items for choice in row.choices if choice != row.choices[row.answer]}
    assert len(wrong) > 30


def test_positions_of_the_right_answer_are_balanced(rows: list[ChoiceRow]) -> None:
    positions = Counter(row.answer for row in rows)
    expected = len(rows) / CHOICES
    # Four standard deviations of a fair draw.
    tolerance = 4 * (expected * (1 - 1 / CHOICES)) ** 0.5
    assert all(abs(positions[index] - expected) < tolerance for index in range(CHOICES))


@pytest.mark.parametrize("hash_seed", ["0", "1", "12345"])
def test_another_process_draws_the_same_items(rows: list[ChoiceRow], hash_seed: str) -> None:
    code = (
        "from lora_kit.evaluation.items import knowledge; print(ascii(knowledge.knowledge_rows()))"
    )
    environment = os.environ | {
        "PYTHONHASHSEED": hash_seed,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ascii(rows)


def test_the_global_generator_is_neither_read_nor_moved(rows: list[ChoiceRow]) -> None:
    random.seed(0)
    state = random.getstate()
    assert knowledge.knowledge_rows() == rows
    assert random.getstate() == state


def test_an_item_does_not_change_with_the_python_version() -> None:
    # random() is promised to stay; sample() and shuffle() are not.
    items = {row.id: row for row in knowledge.relation_rows(relation())}
    assert items["capital/sao-tome"] == ChoiceRow(
        id="capital/sao-tome",
        question="What is the capital of São Tomé?",
        choices=("Rome", "Tokyo", "Paris", "São Tomé city"),
        answer=3,
        cluster="capital/sao-tome",
        slices={"field": "geography"},
    )


def test_also_true_answers_are_not_offered_as_wrong() -> None:
    items = knowledge.relation_rows(relation(also_true={"France": ["Rome", "Lima"]}))
    france = items[0]
    assert france.id == "capital/france"
    assert set(france.choices) == {"Paris", "Madrid", "Tokyo", "São Tomé city"}


def test_the_file_keeps_its_also_true_answers_out(rows: list[ChoiceRow]) -> None:
    choices = {row.id: row.choices for row in rows}
    assert "Athena" not in choices["greek-god/war"]
    assert "the krone" not in choices["currency/sweden"]


def test_a_relation_with_three_answers_is_refused() -> None:
    few = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Gallia": "Paris"}
    with pytest.raises(ValueError, match=r"capital.facts: .*\(got 3\)"):
        knowledge.relation_rows(relation(facts=few))


def test_also_true_that_leaves_two_wrong_answers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"also_true\['France'\]: .*\(got 2\)"):
        knowledge.relation_rows(relation(also_true={"France": ["Rome", "Lima", "Tokyo"]}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"facts": {"World War II end": 1945}}, "a.yaml: capital.facts.World War II end: .*string"),
        ({"facts": {False: "Oslo"}}, "capital.facts.*valid string .got False"),
        ({"facts": ["France"]}, "capital.facts: Input should be a valid dictionary"),
        ({"question": "What is the capital?"}, "no placeholder {subject}"),
        ({"field": " "}, "capital.field: String should match pattern"),
        ({"also_true": {"Frence": ["Rome"]}}, "without a fact.*Frence"),
        ({"also_true": {"France": ["Romme"]}}, "no subject has.*Romme"),
        ({"also_true": {"France": "Rome"}}, "also_true.France: Input should be a valid tuple"),
        ({"also_treu": {}}, "capital.also_treu: Extra inputs"),
    ],
)
def test_a_relation_with_a_slip_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        relation(**changes)
