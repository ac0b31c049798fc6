"""Arithmetic items, with answers recomputed from the text of each problem."""

import itertools
import random
import re

import pytest

from lora_kit.evaluation.items import arithmetic
from lora_kit.evaluation.items.row import ChoiceRow

ROWS = arithmetic.arithmetic_rows()
SIGNS = {
    "apples": "+",
    "birds": "+",
    "books": "+",
    "coins": "-",
    "cake": "-",
    "bus": "-",
    "bags": "*",
    "cars": "*",
}


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def is_right(row: ChoiceRow, choice: str) -> bool:
    """Return true if the choice answers the question, judged by the texts alone."""
    given, last = numbers(row.question), numbers(choice)[-1]
    kind = row.slices["kind"]
    if kind == "story":
        sign = SIGNS[row.cluster.split("/")[1]]
        return choice.startswith(f"{given[0]} {sign} {given[1]} =") and holds(choice)
    if kind == "sequence":
        steps = {b - a for a, b in itertools.pairwise(given)}
        return len(steps) == 1 and last == given[-1] + steps.pop()
    if kind == "neighbour":
        return last == given[0] + (1 if "after" in row.question else -1)
    if kind == "comparison":
        return last == (max if "larger" in row.question else min)(given)
    if kind == "multiplication":
        return last == given[0] * given[1]
    return holds(choice) and numbers(choice)[:2] == given


def holds(equation: str) -> bool:
    a, sign, b, result = re.fullmatch(r"(\d+) ([-+*]) (\d+) = (\d+)", equation).groups()  # type: ignore[union-attr]
    return {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(result)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_exactly_the_marked_answer_is_right(row: ChoiceRow) -> None:
    assert [is_right(row, choice) for choice in row.choices] == [
        index == row.answer for index in range(len(row.choices))
    ]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_no_answer_stands_out_by_its_digits(row: ChoiceRow) -> None:
    if row.slices["kind"] != "story":
        assert len({len(choice) for choice in row.choices}) == 1


def test_small_numbers_dominate() -> None:
    largest = [max(numbers(row.question)) for row in ROWS]
    assert sum(number <= 10 for number in largest) > 0.6 * len(ROWS)
    assert max(largest) < 100


def test_the_same_sum_and_the_same_story_share_a_cluster() -> None:
    clusters = {row.id: row.cluster for row in ROWS}
    for identifier, cluster in clusters.items():
        kind, name = identifier.split("/")
        if kind in ("addition", "larger-addition"):
            first, second = sorted(map(int, name.split("-plus-")))
            assert cluster == f"{kind}/{first}-plus-{second}"
        if kind == "story":
            assert cluster == f"story/{name.split('-')[0]}"


@pytest.mark.parametrize("answer", [0, 1, 9, 10, 19, 20, 99])
def test_near_misses_are_near_and_as_long(answer: int) -> None:
    wrong = arithmetic.near_misses(answer, random.Random("seed"))
    assert len(set(wrong)) == arithmetic.WRONG
    assert answer not in wrong
    assert all(number >= 0 and len(str(number)) == len(str(answer)) for number in wrong)
    assert all(abs(number - answer) <= 10 for number in wrong)
