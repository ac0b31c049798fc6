"""Sums that a small model can do: generated, small numbers first, wrong answers that nearly fit."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lora_kit.evaluation.items.row import ChoiceRow, shuffled

WRONG = 3
"""Wrong answers of an item."""

STORIES = {
    "apples": ("+", "{name} has {a} apples and gets {b} more. How many does {name} have now?"),
    "birds": ("+", "{a} birds sit on a roof and {b} more come. How many birds are there now?"),
    "books": ("+", "{name} read {a} books in May and {b} in June. How many books is that?"),
    "coins": ("-", "{name} has {a} coins and loses {b} of them. How many coins are left?"),
    "cake": ("-", "There were {a} pieces of cake. {name} ate {b}. How many pieces are left?"),
    "bus": ("-", "{a} people sit on the bus and {b} get off. How many are on the bus now?"),
    "bags": ("*", "{name} has {a} bags with {b} oranges in each. How many oranges is that?"),
    "cars": ("*", "There are {a} cars with {b} people in each. How many people is that?"),
}
"""What to do with the numbers of each story, and the story."""

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana")


@dataclass(frozen=True)
class Problem:
    """A question with its answers."""

    name: str
    question: str
    right: str
    cluster: str
    """Shared by problems that have the same solution or the same story."""
    wrong: tuple[str, ...]


def rows() -> list[ChoiceRow]:
    """All items, by kind; the same on every machine and in every process."""
    return [
        ChoiceRow.draw(
            f"{kind}/{problem.name}",
            problem.question,
            problem.right,
            problem.wrong,
            {"kind": kind},
            f"{kind}/{problem.cluster}",
        )
        for kind, make in KINDS.items()
        for problem in make()
    ]


def _problem(
    name: str, question: str, answer: int, *, shown: str = "{}", cluster: str | None = None
) -> Problem:
    """A problem whose wrong answers are near misses; `shown` is how a number is written down."""
    wrong = near_misses(answer, random.Random(f"near {question}"))
    return Problem(
        name,
        question,
        shown.format(answer),
        name if cluster is None else cluster,
        tuple(shown.format(number) for number in wrong),
    )


def near_misses(answer: int, generator: random.Random) -> tuple[int, ...]:
    """Wrong answers close to the right one, with as many digits.

    A longer number is less likely for its length alone; that must not give the answer away.
    """
    steps = (-3, -2, -1, 1, 2, 3) if answer < 20 else (-10, -2, -1, 1, 2, 10)
    same_length = [
        str(answer + step)
        for step in steps
        if answer + step >= 0 and len(str(answer + step)) == len(str(answer))
    ]
    return tuple(int(number) for number in shuffled(same_length, generator)[:WRONG])


def _drawn(kind: str, pairs: Sequence[tuple[int, int]], count: int) -> Iterator[tuple[int, int]]:
    """So many of the pairs, drawn by the kind's name."""
    by_name = {f"{a} {b}": (a, b) for a, b in pairs}
    for name in shuffled(by_name, random.Random(kind))[:count]:
        yield by_name[name]


def _additions(kind: str, pairs: Sequence[tuple[int, int]], count: int) -> Iterator[Problem]:
    for a, b in _drawn(kind, pairs, count):
        name, question = f"{a}-plus-{b}", f"What is {a} + {b}?"
        cluster = f"{min(a, b)}-plus-{max(a, b)}"
        yield _problem(name, question, a + b, shown=f"{a} + {b} = {{}}", cluster=cluster)


def _subtractions(kind: str, pairs: Sequence[tuple[int, int]], count: int) -> Iterator[Problem]:
    for a, b in _drawn(kind, pairs, count):
        name, question = f"{a}-minus-{b}", f"What is {a} - {b}?"
        yield _problem(name, question, a - b, shown=f"{a} - {b} = {{}}")


def addition() -> Iterator[Problem]:
    """Sums of two single digits."""
    pairs = [(a, b) for a in range(1, 10) for b in range(1, 10)]
    return _additions("addition", pairs, 36)


def subtraction() -> Iterator[Problem]:
    """Differences of numbers up to ten."""
    pairs = [(a, b) for a in range(2, 11) for b in range(1, a)]
    return _subtractions("subtraction", pairs, 24)


def larger_addition() -> Iterator[Problem]:
    """Sums of a number with two digits and a small one or a full ten."""
    pairs = [(a, b) for a in range(10, 60) for b in (1, 2, 3, 5, 10, 20)]
    return _additions("larger-addition", pairs, 24)


def larger_subtraction() -> Iterator[Problem]:
    """Differences of a number with two digits and a small one or ten."""
    pairs = [(a, b) for a in range(20, 60) for b in (1, 2, 3, 5, 10)]
    return _subtractions("larger-subtraction", pairs, 16)


def multiplication() -> Iterator[Problem]:
    """Products of small numbers."""
    pairs = [(a, b) for a in range(2, 11) for b in (1, 2, 3, 4, 5, 10)]
    for a, b in _drawn("multiplication", pairs, 24):
        cluster = f"{min(a, b)}-times-{max(a, b)}"
        yield _problem(f"{a}-times-{b}", f"How much is {a} times {b}?", a * b, cluster=cluster)


def comparison() -> Iterator[Problem]:
    """Which of two numbers is larger, or smaller; in the question either may come first."""
    pairs = [(a, b) for a in range(1, 10) for b in range(1, 10) if abs(a - b) > 1]
    for index, (a, b) in enumerate(_drawn("comparison", pairs, 24)):
        word, pick = ("larger", max) if index % 2 else ("smaller", min)
        answer = pick(a, b)
        yield Problem(
            f"{word}-of-{a}-and-{b}",
            f"Which number is {word}, {a} or {b}?",
            str(answer),
            f"{min(a, b)}-or-{max(a, b)}",
            (str(a + b - answer),),
        )


def sequence() -> Iterator[Problem]:
    """The next number of a series with equal steps."""
    pairs = [(start, step) for start in range(1, 11) for step in (1, 2, 3, 5, 10)]
    for start, step in _drawn("sequence", pairs, 24):
        series = ", ".join(str(start + step * index) for index in range(4))
        name, question = f"from-{start}-by-{step}", f"Count on: {series}"
        yield _problem(name, question, start + 4 * step, shown=f"{series}, {{}}")


def neighbour() -> Iterator[Problem]:
    """The number just after or before another."""
    for index, number in enumerate(range(3, 27)):
        word, step = ("the next number after", 1) if index % 2 else ("the number just before", -1)
        name = "after" if step > 0 else "before"
        yield _problem(f"{name}-{number}", f"What is {word} {number}?", number + step)


def story() -> Iterator[Problem]:
    """Short stories with numbers; those of one story are a cluster.

    An answer is wrong in its result, or right in itself but not what the story asks for.
    """
    for name, (sign, template) in STORIES.items():
        other = "-" if sign == "+" else "+"
        pairs = [(a, b) for a in range(3, 10) for b in range(2, 6) if a > b]
        for a, b in _drawn(f"story/{name}", pairs, 4):
            right, not_asked = OPERATIONS[sign](a, b), OPERATIONS[other](a, b)
            yield Problem(
                f"{name}-{a}-{b}",
                template.format(name=NAMES[(a + b) % len(NAMES)], a=a, b=b),
                f"{a} {sign} {b} = {right}",
                name,
                (
                    f"{a} {sign} {b} = {right + 1}",
                    f"{a} {other} {b} = {not_asked}",
                    f"{a} {other} {b} = {not_asked + 1}",
                ),
            )


KINDS: dict[str, Callable[[], Iterator[Problem]]] = {
    "addition": addition,
    "subtraction": subtraction,
    "larger-addition": larger_addition,
    "larger-subtraction": larger_subtraction,
    "multiplication": multiplication,
    "comparison": comparison,
    "sequence": sequence,
    "neighbour": neighbour,
    "story": story,
}
