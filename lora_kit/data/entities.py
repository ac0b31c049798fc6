"""Words with BIO tags: reading and checking of tags, and the entities that they mark.

A tag is `B-X` for the first word of an entity of type X, `I-X` for each further word of it, and `O`
for a word of none (Ramshaw & Marcus 1995, arXiv:cmp-lg/9505040, in the form called IOB2).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lora_kit.data.rows import Row
from lora_kit.data.strict_json import decode_cell
from lora_kit.recipe.token_classification import TokenClassificationSpec
from lora_kit.runtime.errors import DataError

OUTSIDE = "O"
FIRST, INSIDE = "B-", "I-"
EXAMPLE = '{"tokens": ["in", "New", "York"], "tags": ["O", "B-place", "I-place"]}'


class Entity(NamedTuple):
    """Consecutive words of one type.

    Attributes:
        name: type of the entity.
        start: number of its first word, from 0.
        end: number of the word after its last one.
    """

    name: str
    start: int
    end: int


def entities_of(tags: Sequence[str]) -> tuple[Entity, ...]:
    """Return the entities that tags mark, in order.

    An `I-X` that does not continue an entity of type X marks nothing, as in the strict mode of
    seqeval; a model may predict one.
    """
    found: list[Entity] = []
    is_open = False
    for number, tag in enumerate(tags):
        if tag.startswith(FIRST):
            found.append(Entity(tag.removeprefix(FIRST), number, number + 1))
            is_open = True
        elif is_open and tag == INSIDE + found[-1].name:
            found[-1] = found[-1]._replace(end=number + 1)
        else:
            is_open = False
    return tuple(found)


def tags_of(entities: Iterable[Entity], words: int) -> tuple[str, ...]:
    """Return the tag of each of a number of words, from entities that do not overlap."""
    tags = [OUTSIDE] * words
    for name, start, end in entities:
        tags[start:end] = [FIRST + name, *[INSIDE + name] * (end - start - 1)]
    return tuple(tags)


def parse_words(value: object, origin: str) -> tuple[str, ...]:
    """Return the words of a row; a CSV file holds them as JSON text.

    Raises:
        DataError: if they are no list of texts, there are none, or one is empty.
    """
    return _parse_texts(value, "tokens", origin)


def parse_tags(value: object, words: Sequence[str], origin: str) -> tuple[str, ...]:
    """Return the BIO tags of a row's words; a CSV file holds them as JSON text.

    Raises:
        DataError: if they are no BIO tags, one for each word; the message names the first that is
            wrong.
    """
    tags = _parse_texts(value, "tags", origin)
    if len(tags) != len(words):
        raise DataError(
            f"{origin}: tags: other lengths (got {len(tags)} tags of {len(words)} tokens). Fix: "
            f"give one tag for each token, such as {EXAMPLE}"
        )
    before = OUTSIDE
    for number, tag in enumerate(tags):
        if tag != OUTSIDE and (tag[:2] not in (FIRST, INSIDE) or not tag[2:].strip()):
            raise DataError(
                f"{origin}: tags[{number}]: not a BIO tag (got {tag!r:.60}). Fix: write O, B-X for "
                "the first word of an entity of type X, and I-X for its other words"
            )
        if tag.startswith(INSIDE) and before[2:] != tag[2:]:
            raise DataError(
                f"{origin}: tags[{number}]: {tag} continues no entity of its type (got {tag!r} "
                f"after {before!r}). Fix: begin each entity with {FIRST}{tag[2:]}"
            )
        before = tag
    return tags


def _parse_texts(value: object, field: str, origin: str) -> tuple[str, ...]:
    read = decode_cell(value)
    if not isinstance(read, list) or not all(isinstance(one, str) and one.strip() for one in read):
        raise DataError(
            f"{origin}: {field}: not a list of texts that are not empty (got {value!r:.60}). Fix: "
            f"give rows of {EXAMPLE}"
        )
    if not read:
        raise DataError(f"{origin}: {field}: no words (got []). Fix: remove the row")
    return tuple(read)


def write_tags(words: Sequence[str], tags: Sequence[str]) -> str:
    """Return words with their tags as JSON, a list of [word, tag]."""
    return json.dumps(list(zip(words, tags, strict=True)), ensure_ascii=False)


def read_tags(text: str) -> list[tuple[str, str]]:
    """Return the words with their tags that `write_tags` wrote."""
    return [(word, tag) for word, tag in json.loads(text)]


def write_entities(entities: Sequence[Entity], words: Sequence[str]) -> str:
    """Return entities with their words as JSON, a list of [type, start, end, text]."""
    return json.dumps(
        [[*one, " ".join(words[one.start : one.end])] for one in entities], ensure_ascii=False
    )


def read_entities(text: str) -> tuple[Entity, ...]:
    """Return the entities that `write_entities` wrote."""
    return tuple(Entity(name, start, end) for name, start, end, _ in json.loads(text))


def tag_names(rows: Sequence[Row], spec: TokenClassificationSpec) -> list[str]:
    """Return the tags of a head, in the order of its outputs: `O`, then two for each type.

    Args:
        rows: training rows.
        spec: the recipe's `token_classification` section.

    Raises:
        DataError: if a row has no tags or an unknown type, or a type has no row.
    """
    of_rows = [tags_of_row(row, None, "data.train") for row in rows]
    found = {one.name for tags in of_rows for one in entities_of(tags)}
    if not found:
        raise DataError(
            "data.train: no row has an entity, so there is nothing to learn (got the tag "
            f"{OUTSIDE} only). Fix: add rows with entities"
        )
    types = spec.entities or sorted(found)
    for name in types:
        if name not in found:
            raise DataError(
                f"token_classification.entities: no training row has the type (got {name!r}). Fix: "
                "remove it, or add rows"
            )
    names = [OUTSIDE, *(prefix + name for name in types for prefix in (FIRST, INSIDE))]
    for row in rows:
        tags_of_row(row, names, "data.train")
    return names


def tags_of_row(row: Row, names: Sequence[str] | None, part: str) -> tuple[str, ...]:
    """Return the tags of a row.

    Args:
        row: the row.
        names: known tags; `None` for any.
        part: part of the recipe's `data` that the row is from, for error messages.

    Raises:
        DataError: if the row has no tags, or an unknown one.
    """
    if row.tags is None:
        raise DataError(
            f"{row.origin}: training.objective: token-classification needs a tag for each word "
            f"(got none). Fix: give rows of {EXAMPLE}, or map the columns with {part}.N.columns"
        )
    known = row.tags if names is None else names
    unknown = next((tag for tag in row.tags if tag not in known), None)
    if unknown is not None:
        raise DataError(
            f"{row.origin}: tags: unknown tag (got {unknown!r}; the head has {', '.join(known)}). "
            "Fix: correct the row, or name all types with token_classification.entities"
        )
    return row.tags
