"""Built-in rows of functions: numbers and labels that follow from the code, and their formats."""

import ast
from itertools import islice

import pytest

from lora_kit.data.builtin import functions
from lora_kit.data.builtin.docstrings import library_functions
from lora_kit.data.sources import BUILT_IN

CODE = """
def first(rows, wanted=None):
    for row in rows:
        if row and (row == wanted or wanted is None):
            return row
    raise KeyError([one for one in rows if one])
"""


@pytest.fixture
def few_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a part of the standard library, which takes seconds as a whole."""
    monkeypatch.setattr(functions, "library_functions", lambda: islice(library_functions(), 300))


def test_complexity_counts_the_places_where_the_path_divides() -> None:
    # One path, the loop, the condition, `and`, `or`, the comprehension.
    node = ast.parse(CODE).body[0]
    assert functions.complexity(node) == 1 + 1 + 1 + 2 + 1
    assert functions.statements(node) == ("condition", "loop", "raise")


@pytest.mark.usefixtures("few_functions")
def test_functions_have_numbers_and_labels_and_modules_share_no_passage() -> None:
    numbers, labels = (
        read.__wrapped__() for read in (functions.complexity_rows, functions.statement_rows)
    )
    assert [row.origin for row in numbers] == [row.origin for row in labels]
    assert {row.format for row in numbers} == {BUILT_IN["stdlib-complexity"].format}
    assert {row.format for row in labels} == {BUILT_IN["stdlib-statements"].format}
    assert all(row.values and min(row.values.values()) >= 1 for row in numbers)
    assert len({row.cluster for row in numbers}) > 5
