"""Properties shared by all built-in sources of multiple-choice items."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict

import pytest

from lora_kit.evaluation.items.registry import CHOICE_SOURCES
from lora_kit.evaluation.items.row import ChoiceRow, shuffled

ROWS = {name: rows() for name, rows in CHOICE_SOURCES.items()}
LEAST = {
    "general-knowledge": 360,
    "reasoning": 250,
    "language": 250,
    "arithmetic": 200,
    "bias": 400,
}
SLICES = {
    "general-knowledge": {"field"},
    "reasoning": {"kind"},
    "language": {"phenomenon"},
    "arithmetic": {"kind"},
    "bias": {"axis", "condition", "direction"},
}
DIGESTS = {
    "general-knowledge": "6351cfd9817e97484346cebe019b0a92fd8ed68bccb14bb2a0ce0d2d9a095198",
    "reasoning": "1c1f48d1cfef275faa3ecaae1af060bae6828d20c98a3cc324af5aff3074d68d",
    "language": "3c3302db012703b77858333c73b656c85cc6df45b10f10ae170da94be56a202d",
    "arithmetic": "903bca21adaa3ef1387934d5eff44862cc38ad2f2e58a8007eea470c791fd768",
    "bias": "4453855cfb7a62a8651164f154e9e5f3256c53ec41a38b3264eec5fb0374b484",
}

each_source = pytest.mark.parametrize("source", CHOICE_SOURCES)


def digest(rows: list[ChoiceRow]) -> str:
    return hashlib.sha256(json.dumps([asdict(row) for row in rows]).encode()).hexdigest()


@each_source
def test_a_change_of_an_item_is_noticed(source: str) -> None:
    # Figures taken before and after a change are not comparable: change the digest with intent.
    assert digest(ROWS[source]) == DIGESTS[source]


@each_source
def test_there_are_enough_items_in_slices_of_some_size(source: str) -> None:
    assert len(ROWS[source]) >= LEAST[source]
    for name in SLICES[source]:
        sizes = Counter(row.slices[name] for row in ROWS[source])
        assert len(sizes) >= 2
        assert min(sizes.values()) >= 12, sizes


@each_source
def test_every_row_has_the_slices_of_its_source(source: str) -> None:
    assert all(set(row.slices) == SLICES[source] for row in ROWS[source])
    assert all(value.strip() for row in ROWS[source] for value in row.slices.values())


def test_ids_and_questions_are_unique_over_all_sources() -> None:
    rows = [row for rows in ROWS.values() for row in rows]
    for part in ("id", "question"):
        twice = [value for value, n in Counter(getattr(r, part) for r in rows).items() if n > 1]
        assert not twice


@each_source
def test_ids_are_slugs(source: str) -> None:
    for row in ROWS[source]:
        assert re.fullmatch(r"[a-z0-9-]+(/[a-z0-9-]+){1,3}", row.id)
        assert row.cluster.split("/")[0] == row.id.split("/")[0]


@each_source
def test_the_choices_are_distinct_and_the_answer_is_one_of_them(source: str) -> None:
    for row in ROWS[source]:
        assert 2 <= len(row.choices) <= 4
        assert len({choice.casefold() for choice in row.choices}) == len(row.choices), row
        assert 0 <= row.answer < len(row.choices)


@each_source
def test_positions_of_the_right_answer_are_balanced(source: str) -> None:
    for count in {len(row.choices) for row in ROWS[source]}:
        positions = Counter(row.answer for row in ROWS[source] if len(row.choices) == count)
        expected = positions.total() / count
        # Four standard deviations of a fair draw.
        tolerance = 4 * (expected * (1 - 1 / count)) ** 0.5
        assert all(abs(positions[index] - expected) < tolerance for index in range(count))


@each_source
def test_questions_and_choices_are_tidy(source: str) -> None:
    for row in ROWS[source]:
        for text in (row.question, *row.choices):
            assert text == " ".join(text.split())
            assert not set("{}|") & set(text), row


def test_another_process_draws_the_same_items() -> None:
    code = (
        "from lora_kit.evaluation.items.registry import CHOICE_SOURCES; "
        "print(ascii({name: rows() for name, rows in CHOICE_SOURCES.items()}))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ascii(ROWS)


@each_source
def test_the_global_generator_is_neither_read_nor_moved(source: str) -> None:
    random.seed(0)
    state = random.getstate()
    assert CHOICE_SOURCES[source]() == ROWS[source]
    assert random.getstate() == state


def test_the_order_of_choices_depends_on_the_id_alone() -> None:
    wrong = ("b", "c", "d")
    one = ChoiceRow.draw("x/one", "?", "a", wrong, {})
    assert one == ChoiceRow.draw("x/one", "?", "a", wrong, {})
    assert one.choices[one.answer] == "a"
    assert one.cluster == "x/one"
    orders = {ChoiceRow.draw(f"x/{n}", "?", "a", wrong, {}).choices for n in range(50)}
    assert len(orders) > 15


def test_shuffling_keeps_all_values() -> None:
    values = [str(number) for number in range(20)]
    drawn = shuffled(values, random.Random("seed"))
    assert sorted(drawn) == sorted(values)
    assert drawn != values
