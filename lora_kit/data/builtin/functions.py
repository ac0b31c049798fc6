"""`stdlib-complexity`: functions of the installed Python standard library and their complexity.

The number of a function is its cyclomatic complexity: 1, and 1 more for each place at which the
control flow divides (McCabe 1976, IEEE Transactions on Software Engineering 2:308).

`stdlib-statements`: the same functions, with the kinds of statements that they have as labels.

Both follow from the text, which is the code without its docstring. Split by module, so that no file
is in two splits.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

from lora_kit.data.builtin.docstrings import CodeFunction, library_functions
from lora_kit.data.rows import Message, Row
from lora_kit.data.scored import SCORE, write_numbers
from lora_kit.data.tagged import write_labels

# Of shorter functions, nearly all have one path.
MIN_CHARACTERS = 150
# Consecutive words that two functions do not share by chance.
PASSAGE_WORDS = 10
# Nodes at which the control flow divides, besides the operands of `and` and `or`.
BRANCHES = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.comprehension,
    ast.match_case,
    ast.Assert,
)
# Kinds of statements that are labels.
STATEMENTS: dict[str, tuple[type[ast.AST], ...]] = {
    "condition": (ast.If,),
    "context": (ast.With, ast.AsyncWith),
    "function": (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda),
    "generator": (ast.Yield, ast.YieldFrom),
    "handler": (ast.Try,),
    "import": (ast.Import, ast.ImportFrom),
    "loop": (ast.For, ast.AsyncFor, ast.While),
    "raise": (ast.Raise,),
}


@cache
def complexity_rows() -> tuple[Row, ...]:
    """Return functions with their complexity, by file and line; of similar ones, the first."""
    rows = []
    for one in distinct_functions():
        numbers = {SCORE: float(complexity(one.node))}
        messages = (Message("user", one.code), Message("assistant", write_numbers(numbers)))
        rows.append(
            Row(
                one.origin,
                one.module,
                messages,
                completion_from=1,
                values=numbers,
                format="text-score",
            )
        )
    return tuple(rows)


@cache
def statement_rows() -> tuple[Row, ...]:
    """Return the same functions with the kinds of their statements, by file and line."""
    rows = []
    for one in distinct_functions():
        labels = statements(one.node)
        messages = (Message("user", one.code), Message("assistant", write_labels(labels)))
        rows.append(
            Row(
                one.origin,
                one.module,
                messages,
                completion_from=1,
                labels=labels,
                format="text-labels",
            )
        )
    return tuple(rows)


def distinct_functions() -> Iterator[CodeFunction]:
    """Yield the longer functions; of those of two modules with a passage in common, the first."""
    modules: dict[str, str] = {}
    for one in library_functions():
        if len(one.code) < MIN_CHARACTERS:
            continue
        words = re.findall(r"[^\W_]+", one.code.casefold())
        starts = range(max(len(words) - PASSAGE_WORDS, 0) + 1)
        passages = {" ".join(words[start : start + PASSAGE_WORDS]) for start in starts}
        if all(modules.get(passage, one.module) == one.module for passage in passages):
            modules.update(dict.fromkeys(passages, one.module))
            yield one


def complexity(function: ast.AST) -> int:
    """Return the cyclomatic complexity of a function, with those that are defined in it."""
    nodes = list(ast.walk(function))
    operands = sum(len(node.values) - 1 for node in nodes if isinstance(node, ast.BoolOp))
    return 1 + operands + sum(isinstance(node, BRANCHES) for node in nodes)


def statements(function: ast.AST) -> tuple[str, ...]:
    """Return the kinds of statements in a function, sorted; there may be none of `STATEMENTS`."""
    inner = [node for node in ast.walk(function) if node is not function]
    return tuple(
        sorted(
            name
            for name, kinds in STATEMENTS.items()
            if any(isinstance(node, kinds) for node in inner)
        )
    )
