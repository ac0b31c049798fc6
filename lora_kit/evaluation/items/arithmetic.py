"""Generated arithmetic problems for small models, with small numbers and near-miss answers."""

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
"""Operation and text of each story."""

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana")


@dataclass(frozen=True)
class ArithmeticProblem:
    """Question with its answers."""

    name: str
    question: str
    right: str
    cluster: str
    """Label shared by problems with the same solution or the same story."""
    wrong: tuple[str, ...]


def arithmetic_rows() -> list[ChoiceRow]:
    """Return all items, ordered by kind; the same on every machine."""
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
) -> ArithmeticProblem:
    """Create a problem with near misses as wrong answers; `shown` formats an answer."""
    wrong = near_misses(answer, random.Random(f"near {question}"))
    return ArithmeticProblem(
        name,
        question,
        shown.format(answer),
        name if cluster is None else cluster,
        tuple(shown.format(number) for number in wrong),
    )


def near_misses(answer: int, generator: random.Random) -> tuple[int, ...]:
    """Return wrong answers close to the correct one, with the same number of digits.

    A longer number is less likely because of its length, which would give the answer away.
    """
    steps = (-3, -2, -1, 1, 2, 3) if answer < 20 else (-10, -2, -1, 1, 2, 10)
    same_length = [
        str(answer + step)
        for step in steps
        if answer + step >= 0 and len(str(answer + step)) == len(str(answer))
    ]
    return tuple(int(number) for number in shuffled(same_length, generator)[:WRONG])


def _drawn(kind: str, pairs: Sequence[tuple[int, int]], count: int) -> Iterator[tuple[int, int]]:
    """Yield `count` random pairs, with the kind as the seed."""
    by_name = {f"{a} {b}": (a, b) for a, b in pairs}
    for name in shuffled(by_name, random.Random(kind))[:count]:
        yield by_name[name]


def _additions(
    kind: str, pairs: Sequence[tuple[int, int]], count: int
) -> Iterator[ArithmeticProblem]:
    for a, b in _drawn(kind, pairs, count):
        name, question = f"{a}-plus-{b}", f"What is {a} + {b}?"
        cluster = f"{min(a, b)}-plus-{max(a, b)}"
        yield _problem(name, question, a + b, shown=f"{a} + {b} = {{}}", cluster=cluster)


def _subtractions(
    kind: str, pairs: Sequence[tuple[int, int]], count: int
) -> Iterator[ArithmeticProblem]:
    for a, b in _drawn(kind, pairs, count):
        name, question = f"{a}-minus-{b}", f"What is {a} - {b}?"
        yield _problem(name, question, a - b, shown=f"{a} - {b} = {{}}")


def addition() -> Iterator[ArithmeticProblem]:
    """Yield sums of two single digits."""
    pairs = [(a, b) for a in range(1, 10) for b in range(1, 10)]
    return _additions("addition", pairs, 36)


def subtraction() -> Iterator[ArithmeticProblem]:
    """Yield differences of numbers up to ten."""
    pairs = [(a, b) for a in range(2, 11) for b in range(1, a)]
    return _subtractions("subtraction", pairs, 24)


def larger_addition() -> Iterator[ArithmeticProblem]:
    """Yield sums of a two-digit number and 1, 2, 3, 5, 10 or 20."""
    pairs = [(a, b) for a in range(10, 60) for b in (1, 2, 3, 5, 10, 20)]
    return _additions("larger-addition", pairs, 24)


def larger_subtraction() -> Iterator[ArithmeticProblem]:
    """Yield differences of a two-digit number and 1, 2, 3, 5 or 10."""
    pairs = [(a, b) for a in range(20, 60) for b in (1, 2, 3, 5, 10)]
    return _subtractions("larger-subtraction", pairs, 16)


def multiplication() -> Iterator[ArithmeticProblem]:
    """Yield products of small numbers."""
    pairs = [(a, b) for a in range(2, 11) for b in (1, 2, 3, 4, 5, 10)]
    for a, b in _drawn("multiplication", pairs, 24):
        cluster = f"{min(a, b)}-times-{max(a, b)}"
        yield _problem(f"{a}-times-{b}", f"How much is {a} times {b}?", a * b, cluster=cluster)


def comparison() -> Iterator[ArithmeticProblem]:
    """Yield questions for the larger or smaller of two numbers, in either order."""
    pairs = [(a, b) for a in range(1, 10) for b in range(1, 10) if abs(a - b) > 1]
    for index, (a, b) in enumerate(_drawn("comparison", pairs, 24)):
        word, pick = ("larger", max) if index % 2 else ("smaller", min)
        answer = pick(a, b)
        yield ArithmeticProblem(
            f"{word}-of-{a}-and-{b}",
            f"Which number is {word}, {a} or {b}?",
            str(answer),
            f"{min(a, b)}-or-{max(a, b)}",
            (str(a + b - answer),),
        )


def number_series() -> Iterator[ArithmeticProblem]:
    """Yield questions for the next number of a series with equal steps."""
    pairs = [(start, step) for start in range(1, 11) for step in (1, 2, 3, 5, 10)]
    for start, step in _drawn("sequence", pairs, 24):
        series = ", ".join(str(start + step * index) for index in range(4))
        name, question = f"from-{start}-by-{step}", f"Count on: {series}"
        yield _problem(name, question, start + 4 * step, shown=f"{series}, {{}}")


def neighbour() -> Iterator[ArithmeticProblem]:
    """Yield questions for the number just after or before another."""
    for index, number in enumerate(range(3, 27)):
        word, step = ("the next number after", 1) if index % 2 else ("the number just before", -1)
        name = "after" if step > 0 else "before"
        yield _problem(f"{name}-{number}", f"What is {word} {number}?", number + step)


def story() -> Iterator[ArithmeticProblem]:
    """Yield short stories with numbers; the problems of one story form a cluster.

    A wrong answer has a wrong result, or is a correct calculation that the story does not ask for.
    """
    for name, (sign, template) in STORIES.items():
        other = "-" if sign == "+" else "+"
        pairs = [(a, b) for a in range(3, 10) for b in range(2, 6) if a > b]
        for a, b in _drawn(f"story/{name}", pairs, 4):
            right, not_asked = OPERATIONS[sign](a, b), OPERATIONS[other](a, b)
            yield ArithmeticProblem(
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


KINDS: dict[str, Callable[[], Iterator[ArithmeticProblem]]] = {
    "addition": addition,
    "subtraction": subtraction,
    "larger-addition": larger_addition,
    "larger-subtraction": larger_subtraction,
    "multiplication": multiplication,
    "comparison": comparison,
    "sequence": number_series,
    "neighbour": neighbour,
    "story": story,
}
