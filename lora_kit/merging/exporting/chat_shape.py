"""Texts around the turns of a chat template, read from its renderings of marked conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal

from lora_kit.merging.exporting.go_template import (
    HAS_SYSTEM,
    IS_ASSISTANT,
    IS_LAST,
    IS_NOT_LAST,
    IS_USER,
    RANGE,
    SYSTEM_AT_FIRST,
    SYSTEM_AT_LAST,
    literal,
)

Turn = dict[str, str]
# Renders a conversation, with the beginning of an answer if the second argument is true; `None`
# where the template rejects the conversation.
Renderer = Callable[[Sequence[Turn], bool], str | None]
SYSTEM = "SYSTEMTEXT"
QUESTIONS, ANSWER = ("QUESTIONONE", "QUESTIONTWO"), "ANSWERONE"
Place = Literal["own turn", "first question", "last question"]
CONDITION = {"first question": SYSTEM_AT_FIRST, "last question": SYSTEM_AT_LAST}


@dataclass(frozen=True)
class SystemText:
    """Place of the system text, and the texts around it.

    Attributes:
        place: turn that the text belongs to.
        before: text before it; for a turn of its own, from the beginning of the conversation.
        after: text after it.
    """

    place: Place
    before: str
    after: str


@dataclass(frozen=True)
class ChatShape:
    """Texts around the turns of a conversation.

    Attributes:
        beginning: text before the first turn; with a system turn, only where no system text is
            given: a template may write one of its own.
        before_question: text before a question.
        after_question: text after each question.
        prompt: text that begins the answer to be generated.
        before_answer: text before an earlier answer.
        after_answer: text after an earlier answer.
        system: system text; `None` for a template that writes none.
    """

    beginning: str
    before_question: str
    after_question: str
    prompt: str
    before_answer: str
    after_answer: str
    system: SystemText | None = None

    def go_template(self) -> str:
        """Return the template in Ollama's language; a final answer stays open, to be continued."""
        beginning, within = literal(self.beginning), ""
        if self.system is not None:
            before, after = literal(self.system.before), literal(self.system.after)
            if self.system.place == "own turn":
                beginning = _if(HAS_SYSTEM, f"{before}{{{{ .System }}}}{after}", beginning)
            else:
                condition = CONDITION[self.system.place]
                within = _if(condition, f"{before}{{{{ $.System }}}}{after}")
        question = (
            f"{literal(self.before_question)}{within}{{{{ .Content }}}}"
            f"{literal(self.after_question)}{_if(IS_LAST, literal(self.prompt))}"
        )
        closing = _if(IS_NOT_LAST, literal(self.after_answer))
        answer = f"{literal(self.before_answer)}{{{{ .Content }}}}{closing}"
        return (
            f"{beginning}{{{{ {RANGE} }}}}{{{{ if {IS_USER} }}}}{question}"
            f"{{{{ else if {IS_ASSISTANT} }}}}{answer}{{{{ end }}}}{{{{ end }}}}"
        )


def _if(condition: str, then: str, otherwise: str = "") -> str:
    if not then + otherwise:
        return ""
    arm = f"{{{{ else }}}}{otherwise}" if otherwise else ""
    return f"{{{{ if {condition} }}}}{then}{arm}{{{{ end }}}}"


def chat_shapes(render: Renderer, added: str) -> Iterator[ChatShape]:
    """Yield the shapes that a chat template may have; the caller compares them with renderings.

    Args:
        render: the template.
        added: start token that the program adds to every prompt by itself, left out of the
            shapes; empty if none.
    """
    first, answer, second = _turns("user", "assistant", "user")
    parts = _around(render([first, answer, second], True), (first, answer, second))
    if parts is None:
        return
    start, between, onward, end = parts
    closed = _around(render([first, answer], False), (first, answer))
    after_answer = closed[-1] if closed and onward.startswith(closed[-1]) else ""
    before_question = onward.removeprefix(after_answer)
    if not start.endswith(before_question):
        before_question = _common_beginning(start[::-1], onward[::-1])[::-1]
        after_answer = onward.removesuffix(before_question)
    beginning = start.removesuffix(before_question)
    if added and not beginning and before_question.startswith(added):
        # Written before each question: after each answer instead, and once at the beginning.
        before_question = before_question.removeprefix(added)
        beginning, after_answer = added, after_answer + added
    asked = _around(render([first], False), (first,))
    after_question = _common_beginning(between, end, *([asked[-1]] if asked else []))
    base = ChatShape(
        beginning=beginning.removeprefix(added),
        before_question=before_question,
        after_question=after_question,
        prompt=end.removeprefix(after_question),
        before_answer=between.removeprefix(after_question),
        after_answer=after_answer,
    )
    yield from _with_system(base, render, added)


def _with_system(base: ChatShape, render: Renderer, added: str) -> Iterator[ChatShape]:
    system, first = {"role": "system", "content": SYSTEM}, _turns("user")[0]
    parts = _around(render([system, first], True), (system, first))
    if parts is None:
        yield base
        return
    before, after = parts[0].removeprefix(added), parts[1]
    if after.endswith(base.before_question):
        own = SystemText("own turn", before, after.removesuffix(base.before_question))
        yield replace(base, system=own)
    opening = base.beginning + base.before_question
    if before.startswith(opening):
        before = before.removeprefix(opening)
        yield replace(base, system=SystemText("first question", before, after))
        yield replace(base, system=SystemText("last question", before, after))


def _turns(*roles: str) -> list[Turn]:
    questions = iter(QUESTIONS)
    return [
        {"role": role, "content": next(questions) if role == "user" else ANSWER} for role in roles
    ]


def _around(text: str | None, turns: Sequence[Turn]) -> list[str] | None:
    """Split a rendering at the texts of the turns; `None` unless each is there once, in order."""
    parts = []
    for turn in turns:
        if text is None or text.count(turn["content"]) != 1:
            return None
        before, _, text = text.partition(turn["content"])
        parts.append(before)
    return None if text is None else [*parts, text]


def _common_beginning(*texts: str) -> str:
    columns = takewhile(lambda chars: len(set(chars)) == 1, zip(*texts, strict=False))
    return "".join(chars[0] for chars in columns)
