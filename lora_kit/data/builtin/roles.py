"""`stdlib-roles`: short functions of the installed Python standard library and the roles of names.

The words of a row are the tokens of a function's code without line breaks. The entities follow from
its syntax tree: what a call calls, what an assignment, a loop or a `with` sets, the exceptions that
are raised or caught, the parameters of the function, and the names of keyword arguments. The same
name may have any of these roles: `key = value` is an assignment, a parameter with its default, or a
keyword argument. Split by module, so that no file is in two splits.
"""

from __future__ import annotations

import ast
import io
import tokenize
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cache

from lora_kit.data.builtin.functions import distinct_functions
from lora_kit.data.entities import Entity, entities_of, tags_of, write_entities
from lora_kit.data.rows import Message, Row

# Tokens of a function.
WORDS = range(20, 81)
# Longest token; longer ones are texts.
MAX_CHARACTERS = 40
LAYOUT = (
    tokenize.NEWLINE,
    tokenize.NL,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.COMMENT,
    tokenize.ENDMARKER,
)

Place = tuple[int, int]
Role = tuple[str, Place, Place]


@cache
def role_rows() -> tuple[Row, ...]:
    """Return functions with the roles of their names, by file and line; each has an entity."""
    rows = []
    for one in distinct_functions():
        found = labelled_code(one.code)
        if found is None:
            continue
        words, tags = found
        answer = write_entities(entities_of(tags), words)
        messages = (Message("user", " ".join(words)), Message("assistant", answer))
        rows.append(
            Row(
                one.origin,
                one.module,
                messages,
                completion_from=1,
                words=words,
                tags=tags,
                format="tokens-tags",
            )
        )
    return tuple(rows)


def labelled_code(code: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the tokens of a function's code, and the tag of each.

    `None` if the function is too short or too long, has a long text, a character outside of ASCII
    or an f-string, whose tokens differ between versions of Python.
    """
    tree = ast.parse(code)
    if not code.isascii() or any(isinstance(node, ast.JoinedStr) for node in ast.walk(tree)):
        return None
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(code).readline)
        if token.type not in LAYOUT
    ]
    words = tuple(token.string for token in tokens)
    if len(words) not in WORDS or max(map(len, words)) > MAX_CHARACTERS:
        return None
    starts = [token.start for token in tokens]
    entities = sorted(
        Entity(name, bisect_left(starts, start), bisect_left(starts, end))
        for name, start, end in _roles(tree)
    )
    tags = tags_of(_without_nested(entities), len(words))
    return (words, tags) if any(tag != "O" for tag in tags) else None


def _without_nested(entities: Sequence[Entity]) -> list[Entity]:
    """Return the entities that do not lie in another one, such as `f` of the call in `f(x).y = 1`.

    An exception that is raised by a call, as in `raise ValueError(x)`, is no callee.
    """
    kept: list[Entity] = []
    for one in sorted(entities, key=lambda one: (one.start, -one.end, one.name != "exception")):
        if not kept or one.start >= kept[-1].end:
            kept.append(one)
    return kept


def _roles(tree: ast.AST) -> Iterator[Role]:
    """Yield the name of a role with the first place and the place after the last of its code."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=function, keywords=keywords):
                yield _role("callee", function)
                for given in keywords:
                    if given.arg is not None:
                        yield _name("keyword", given, given.arg)
            case ast.arg(arg=parameter):
                yield _name("parameter", node, parameter)
            case ast.Assign(targets=targets):
                for one in targets:
                    yield from _targets(one)
            case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
                yield from _targets(target)
            case ast.For(target=target) | ast.comprehension(target=target):
                yield from _targets(target)
            case ast.withitem(optional_vars=ast.expr() as target):
                yield from _targets(target)
            case ast.Raise(exc=ast.Call(func=exception)) | ast.Raise(exc=ast.expr() as exception):
                yield _role("exception", exception)
            case ast.ExceptHandler(type=ast.Tuple(elts=caught)):
                for one in caught:
                    yield _role("exception", one)
            case ast.ExceptHandler(type=ast.expr() as exception):
                yield _role("exception", exception)


def _role(name: str, node: ast.expr) -> Role:
    end = (node.end_lineno or node.lineno, node.end_col_offset or 0)
    return name, (node.lineno, node.col_offset), end


def _name(role: str, node: ast.arg | ast.keyword, name: str) -> Role:
    """Return the role of the name at the beginning of a node."""
    return role, (node.lineno, node.col_offset), (node.lineno, node.col_offset + len(name))


def _targets(node: ast.expr) -> Iterator[Role]:
    """Yield each name, attribute or item that is set, also of several at once."""
    match node:
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            for one in parts:
                yield from _targets(one)
        case ast.Starred(value=value):
            yield from _targets(value)
        case _:
            yield _role("target", node)
