"""`python-reference`: the language reference in `pydoc_data.topics`, as prose.

Split into documents of a few paragraphs; the documents of a topic form one cluster and stay in one
split.
"""

from __future__ import annotations

import pydoc_data.topics
import re
from functools import cache

from lora_kit.data.rows import Row

DOCUMENT_CHARACTERS = 900
_SPACE = re.compile(r"\s+")


@cache
def reference_rows() -> tuple[Row, ...]:
    """Return all documents, by topic."""
    rows = []
    seen: set[str] = set()
    for topic in sorted(pydoc_data.topics.topics):
        # Topics share paragraphs, which would then be in two splits.
        paragraphs = [
            paragraph
            for paragraph in pydoc_data.topics.topics[topic].split("\n\n")
            if _SPACE.sub(" ", paragraph).strip() not in seen
        ]
        seen.update(_SPACE.sub(" ", paragraph).strip() for paragraph in paragraphs)
        rows += [
            Row(origin=f"{topic}#{number}", cluster=topic, text=text)
            for number, text in enumerate(_documents(paragraphs))
        ]
    return tuple(rows)


def _documents(paragraphs: list[str]) -> list[str]:
    """Join paragraphs into documents of limited length, and drop documents that are too short."""
    documents: list[str] = []
    current = ""
    for paragraph in paragraphs:
        if current and len(current) + len(paragraph) > DOCUMENT_CHARACTERS:
            documents.append(current)
            current = ""
        current = f"{current}\n\n{paragraph}" if current else paragraph
    documents.append(current)
    return [d.strip() for d in documents if len(d.strip()) >= DOCUMENT_CHARACTERS // 3]
