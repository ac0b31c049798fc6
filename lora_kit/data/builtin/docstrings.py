"""`stdlib-docstrings`: functions of the installed Python standard library and their summaries.

`stdlib-docstring-pairs`: preference pairs of the same functions, where the rejected answer is the
summary of another function of the module.

Real text on every machine, without a download. Split by module, so that no file is in two splits.
"""

from __future__ import annotations

import ast
import dataclasses
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from lora_kit.data.rows import Message, Row

INSTRUCTION = "Write the one-line docstring of this Python function.\n\n"
CODE_CHARACTERS = range(60, 701)
SUMMARY_CHARACTERS = range(15, 121)
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@cache
def docstring_rows() -> tuple[Row, ...]:
    """Return all functions with a usable docstring, by file and line."""
    library = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    rows = []
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library)
        if LEFT_OUT & set(module.parts):
            continue
        for line, code, summary in _functions(path):
            if summary not in seen:
                seen.add(summary)
                prompt = f"{INSTRUCTION}```python\n{code}\n```"
                rows.append(
                    Row(
                        origin=f"{module}:{line}",
                        cluster=str(module),
                        messages=(Message("user", prompt), Message("assistant", summary)),
                    )
                )
    return tuple(rows)


@cache
def docstring_pairs() -> tuple[Row, ...]:
    """Return preference pairs: a function's summary against that of another function.

    The rejected summary is the one of the same module closest in length, so that the length gives
    no hint; modules with one usable function give no pair.
    """
    by_module: dict[str, list[Row]] = {}
    for row in docstring_rows():
        by_module.setdefault(row.cluster, []).append(row)
    return tuple(
        dataclasses.replace(
            row, completion_from=1, rejected=(_nearest_in_length(row, rows),), format="preference"
        )
        for rows in by_module.values()
        if len(rows) > 1
        for row in rows
    )


def _nearest_in_length(row: Row, rows: Sequence[Row]) -> Message:
    own = len(row.messages[-1].content)
    others = [other.messages[-1] for other in rows if other is not row]
    return min(others, key=lambda message: abs(len(message.content) - own))


def _functions(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line, code without docstring, and summary of each usable function of a file."""
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in files of the standard library
            tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, OSError):
        return  # fixtures of lib2to3 are intentionally invalid Python
    lines = source.splitlines()
    for node in _statements(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        docstring = ast.get_docstring(node, clean=False)
        summary = docstring.strip().splitlines()[0].strip() if docstring else ""
        if len(summary) not in SUMMARY_CHARACTERS:
            continue
        statement = node.body[0]
        without_docstring = (
            lines[node.lineno - 1 : statement.lineno - 1]
            + lines[statement.end_lineno or statement.lineno : node.end_lineno]
        )
        code = textwrap.dedent("\n".join(without_docstring)).strip()
        if len(code) in CODE_CHARACTERS and summary not in code:
            yield node.lineno, code, summary


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield all statements, level by level; expressions, most of a tree, hold no function."""
    level: list[ast.AST] = [tree]
    while level:
        yield from level
        level = [
            child
            for node in level
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case)
        ]
