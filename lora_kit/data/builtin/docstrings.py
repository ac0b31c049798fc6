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
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lora_kit.data.rows import Message, Row

INSTRUCTION = "Write the one-line docstring of this Python function.\n\n"
CODE_CHARACTERS = range(60, 701)
SUMMARY_CHARACTERS = range(15, 121)
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class CodeFunction:
    """Function of the standard library.

    Attributes:
        module: path of its file in the library.
        line: line of the file at which it begins.
        code: code without the docstring.
        docstring: the docstring; empty without one.
        node: syntax tree of the function.
    """

    module: str
    line: int
    code: str
    docstring: str
    node: ast.FunctionDef | ast.AsyncFunctionDef

    @property
    def origin(self) -> str:
        """Location of the function."""
        return f"{self.module}:{self.line}"


@cache
def docstring_rows() -> tuple[Row, ...]:
    """Return all functions with a usable docstring, by file and line."""
    seen: set[str] = set()
    rows = []
    for one in library_functions():
        summary = one.docstring.strip().splitlines()[0].strip() if one.docstring.strip() else ""
        if len(summary) not in SUMMARY_CHARACTERS or summary in one.code or summary in seen:
            continue
        seen.add(summary)
        prompt = f"{INSTRUCTION}```python\n{one.code}\n```"
        messages = (Message("user", prompt), Message("assistant", summary))
        rows.append(Row(one.origin, one.module, messages))
    return tuple(rows)


def library_functions() -> Iterator[CodeFunction]:
    """Yield all functions of a usable length, by file and line."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library)
        if not LEFT_OUT & set(module.parts):
            yield from _functions(path, str(module))


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


def _functions(path: Path, module: str) -> Iterator[CodeFunction]:
    """Yield each function of a file whose code has a usable length."""
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in files of the standard library
            tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, OSError):
        return  # fixtures of lib2to3 are intentionally invalid Python
    lines = source.splitlines()
    for node in _statements(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node, clean=False) or ""
        kept = lines[node.lineno - 1 : node.end_lineno]
        if docstring:
            if len(node.body) < 2:
                continue
            statement = node.body[0]
            kept = (
                lines[node.lineno - 1 : statement.lineno - 1]
                + lines[statement.end_lineno or statement.lineno : node.end_lineno]
            )
        code = textwrap.dedent("\n".join(kept)).strip()
        if len(code) in CODE_CHARACTERS:
            yield CodeFunction(module, node.lineno, code, docstring, node)


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
