"""Questions that are written out one by one, in kinds, with their right and wrong answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lora_kit.evaluation.items import parse
from lora_kit.evaluation.items.row import ChoiceRow, slug

BLANK = "___"
"""Marks the gap that the answers fill."""


@dataclass(frozen=True)
class Written:
    """One question of a kind."""

    id: str
    """`kind/name`, slugs both."""
    kind: str
    question: str
    right: str
    wrong: tuple[str, ...]
    cluster: str

    @classmethod
    def parse(cls, kind: str, ask: str | None, name: str, value: object) -> Written:
        """The question that a YAML mapping describes.

        `ask` is the question of the whole kind, `{about}` where the item's own part goes.

        Raises:
            ValueError: a part is missing or of the wrong type, an answer is there twice, or the
                name is no slug.
        """
        where = f"{kind}.{name}"
        part = "question" if ask is None else "about"
        fields = parse.mapping(value, where)
        parse.known_keys(fields, {part, "right", "wrong", "cluster"}, where)
        if slug(name) != name:
            raise ValueError(f"{where}: the name must be a slug, such as {slug(name)!r}")
        own = parse.text(fields.get(part), f"{where}.{part}")
        right = parse.text(fields.get("right"), f"{where}.right")
        wrong = parse.texts(fields.get("wrong"), f"{where}.wrong")
        if own.count(BLANK) > 1:
            raise ValueError(f"{where}.{part} has more than one blank: {own!r}")
        if BLANK in own:
            right, *others = (own.replace(BLANK, form) for form in (right, *wrong))
            wrong = tuple(others)
        if len({choice.casefold() for choice in (right, *wrong)}) < 1 + len(wrong):
            raise ValueError(f"{where} has an answer twice: {[right, *wrong]}")
        identifier = f"{slug(kind)}/{name}"
        cluster = fields.get("cluster")
        return cls(
            id=identifier,
            kind=kind,
            question=own if ask is None else ask.replace("{about}", own),
            right=right,
            wrong=wrong,
            cluster=identifier if cluster is None else parse.text(cluster, f"{where}.cluster"),
        )

    def row(self, slice_name: str) -> ChoiceRow:
        """The item, its kind under this name of a slice."""
        return ChoiceRow.draw(
            self.id, self.question, self.right, self.wrong, {slice_name: self.kind}, self.cluster
        )


def read(file: str) -> list[Written]:
    """All questions of a YAML file of this folder, in its order."""
    return [question for group in parse.read(file) for question in questions(group)]


def questions(group: Mapping[str, object]) -> Iterator[Written]:
    """The questions of one kind.

    Raises:
        ValueError: the kind or one of its questions is not well formed.
    """
    kind = parse.text(group.get("kind"), "a kind")
    parse.known_keys(group, {"kind", "ask", "items"}, f"kind {kind!r}")
    ask = group.get("ask")
    if ask is not None:
        ask = parse.text(ask, f"{kind}.ask")
        if "{about}" not in ask:
            raise ValueError(f"{kind}.ask must hold {{about}}: {ask!r}")
    for name, value in parse.mapping(group.get("items"), f"{kind}.items").items():
        yield Written.parse(kind, ask, parse.text(name, f"a name in {kind}"), value)
