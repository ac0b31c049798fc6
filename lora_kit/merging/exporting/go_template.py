"""Go templates as Ollama expands them: the few constructs that an export writes, and evaluation.

Reference: Go's text/template, and template/template.go in Ollama, which sets `.System` to all
system texts, joined, and `.Messages` to all messages.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

RANGE = "range $i, $_ := .Messages"
HAS_SYSTEM = ".System"
IS_USER = 'eq .Role "user"'
IS_ASSISTANT = 'eq .Role "assistant"'
IS_LAST = "eq (len (slice $.Messages $i)) 1"
IS_NOT_LAST = "gt (len (slice $.Messages $i)) 1"
# The first question follows the system text.
SYSTEM_AT_FIRST = "and $.System (eq $i 1)"
SYSTEM_AT_LAST = f"and $.System ({IS_LAST})"
# An opening brace could begin an action, quotes could end the template in a Modelfile, and
# Ollama's parser of Modelfiles drops characters that cannot be printed.
ESCAPED = re.compile(r'(\{+|"+)')


@dataclass(frozen=True)
class Scope:
    """Variables of a template.

    Attributes:
        system: system texts, joined.
        messages: messages with `role` and `content`.
        index: number of the current message.
    """

    system: str
    messages: Sequence[Mapping[str, str]]
    index: int = -1

    @property
    def role(self) -> str:
        """Role of the current message."""
        return self.messages[self.index]["role"]

    @property
    def is_last(self) -> bool:
        """True for the last message."""
        return self.index == len(self.messages) - 1


CONDITIONS: Mapping[str, Callable[[Scope], bool]] = {
    HAS_SYSTEM: lambda scope: bool(scope.system),
    IS_USER: lambda scope: scope.role == "user",
    IS_ASSISTANT: lambda scope: scope.role == "assistant",
    IS_LAST: lambda scope: scope.is_last,
    IS_NOT_LAST: lambda scope: not scope.is_last,
    SYSTEM_AT_FIRST: lambda scope: bool(scope.system) and scope.index == 1,
    SYSTEM_AT_LAST: lambda scope: bool(scope.system) and scope.is_last,
    # The arm of a plain `else`.
    "": lambda _: True,
}
VALUES: Mapping[str, Callable[[Scope], str]] = {
    ".System": lambda scope: scope.system,
    "$.System": lambda scope: scope.system,
    ".Content": lambda scope: scope.messages[scope.index]["content"],
}


@dataclass(frozen=True)
class Branch:
    """`if` with its arms, or `range` with one arm; an arm is a condition and its nodes."""

    is_range: bool
    arms: tuple[tuple[str, tuple[Node, ...]], ...]


Node = str | Branch


def literal(text: str) -> str:
    """Return text as it stands in a template, with string actions for what has to be escaped."""
    return "".join(
        f"{{{{ {_go_string(part)} }}}}" if ESCAPED.fullmatch(part) else _printable(part)
        for part in ESCAPED.split(text)
    )


def _printable(text: str) -> str:
    return "".join(
        char if char.isprintable() or char in "\n\t" else f"{{{{ {_go_string(char)} }}}}"
        for char in text
    )


def _go_string(text: str) -> str:
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted) + '"'


def expand(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """Expand a template that has no other constructs than those of this module.

    Args:
        template: text of the template.
        messages: messages with `role` and `content`; no two of the same role in a row, which
            Ollama would join.
    """
    system = "\n\n".join(turn["content"] for turn in messages if turn["role"] == "system")
    nodes, _ = _parse(iter(re.split(r"(\{\{ .*? \}\})", template)))
    return "".join(_expanded(nodes, Scope(system, messages)))


def _parse(tokens: Iterator[str]) -> tuple[tuple[Node, ...], str]:
    """Return the nodes up to an `else` or `end`, and that action."""
    nodes: list[Node] = []
    for token in tokens:
        action = token[3:-3] if token.startswith("{{ ") else ""
        if action == "end" or action.startswith("else"):
            return tuple(nodes), action
        if action == RANGE:
            inner, _ = _parse(tokens)
            nodes.append(Branch(True, (("", inner),)))
        elif action.startswith("if "):
            nodes.append(_parse_if(action.removeprefix("if "), tokens))
        else:
            nodes.append(token)
    return tuple(nodes), "end"


def _parse_if(condition: str, tokens: Iterator[str]) -> Branch:
    arms = []
    ending = "else"
    while ending != "end":
        inner, ending = _parse(tokens)
        arms.append((condition, inner))
        condition = ending.removeprefix("else").removeprefix(" if ")
    return Branch(False, tuple(arms))


def _expanded(nodes: Sequence[Node], scope: Scope) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, Branch) and node.is_range:
            for index in range(len(scope.messages)):
                yield from _expanded(node.arms[0][1], Scope(scope.system, scope.messages, index))
        elif isinstance(node, Branch):
            arms = (inner for condition, inner in node.arms if CONDITIONS[condition](scope))
            yield from _expanded(next(arms, ()), scope)
        elif not node.startswith("{{ "):
            yield node
        elif node[3] == '"':
            # Escapes of these strings mean the same in Python.
            yield ast.literal_eval(node[3:-3])
        else:
            yield VALUES[node[3:-3]](scope)
