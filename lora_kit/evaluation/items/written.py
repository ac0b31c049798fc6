"""Questions written one by one in YAML files, grouped by kind, with correct and wrong answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lora_kit.evaluation.items import parse
from lora_kit.evaluation.items.row import ChoiceRow, slug

BLANK = "___"
"""Placeholder in a question that the answers fill."""


@dataclass(frozen=True)
class WrittenQuestion:
    """Question of a kind, with its answers."""

    id: str
    """`kind/name`, each a slug."""
    kind: str
    question: str
    right: str
    wrong: tuple[str, ...]
    cluster: str

    @classmethod
    def parse(cls, kind: str, ask: str | None, name: str, value: object) -> WrittenQuestion:
        """Parse a question from a YAML mapping.

        Args:
            kind: kind of the question.
            ask: question of the kind, with `{about}` in place of the item's own part; `None` if
                every item has its own `question`.
            name: name of the item, a slug.
            value: YAML mapping of the item.

        Raises:
            ValueError: if a field is missing or has the wrong type, an answer occurs twice, or the
                name is not a slug.
        """
        where = f"{kind}.{name}"
        part = "question" if ask is None else "about"
        fields = parse.require_mapping(value, where)
        parse.require_known_keys(fields, {part, "right", "wrong", "cluster"}, where)
        if slug(name) != name:
            raise ValueError(
                f"{where}: the name must be a slug (got {name!r}). Fix: write {slug(name)!r}"
            )
        own = parse.require_text(fields.get(part), f"{where}.{part}")
        right = parse.require_text(fields.get("right"), f"{where}.right")
        wrong = parse.require_texts(fields.get("wrong"), f"{where}.wrong")
        if own.count(BLANK) > 1:
            raise ValueError(
                f"{where}.{part}: more than one blank (got {own!r}). Fix: keep one {BLANK}"
            )
        if BLANK in own:
            right, *others = (own.replace(BLANK, form) for form in (right, *wrong))
            wrong = tuple(others)
        if len({choice.casefold() for choice in (right, *wrong)}) < 1 + len(wrong):
            raise ValueError(
                f"{where}: duplicate answers (got {[right, *wrong]}). Fix: change one of them"
            )
        identifier = f"{slug(kind)}/{name}"
        cluster = fields.get("cluster")
        return cls(
            id=identifier,
            kind=kind,
            question=own if ask is None else ask.replace("{about}", own),
            right=right,
            wrong=wrong,
            cluster=identifier
            if cluster is None
            else parse.require_text(cluster, f"{where}.cluster"),
        )

    def row(self, slice_name: str) -> ChoiceRow:
        """Return the question as a multiple-choice row, with the kind as a slice of this name."""
        return ChoiceRow.draw(
            self.id, self.question, self.right, self.wrong, {slice_name: self.kind}, self.cluster
        )


def read_written_questions(file: str) -> list[WrittenQuestion]:
    """Return all questions of a YAML file of this folder, in file order."""
    return [
        question
        for group in parse.read_item_file(file)
        for question in parse_written_questions(group)
    ]


def parse_written_questions(group: Mapping[str, object]) -> Iterator[WrittenQuestion]:
    """Yield the questions of one kind.

    Raises:
        ValueError: if the kind or one of its questions is malformed.
    """
    kind = parse.require_text(group.get("kind"), "kind")
    parse.require_known_keys(group, {"kind", "ask", "items"}, f"kind {kind!r}")
    ask = group.get("ask")
    if ask is not None:
        ask = parse.require_text(ask, f"{kind}.ask")
        if "{about}" not in ask:
            raise ValueError(
                f"{kind}.ask: no placeholder {{about}} (got {ask!r}). Fix: add {{about}}"
            )
    for name, value in parse.require_mapping(group.get("items"), f"{kind}.items").items():
        yield WrittenQuestion.parse(kind, ask, parse.require_text(name, f"a name in {kind}"), value)
