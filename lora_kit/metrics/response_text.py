"""Text of a response as people read it: words, phrases and sentences, without markdown signs."""

from __future__ import annotations

import re
import unicodedata

LIST_MARKER = re.compile(r"^[ \t]*(?:[-*+•]|\d+[.)])[ \t]+", re.MULTILINE)

SENTENCE_END = re.compile(r"[.!?…]+[\"')*_\]]*(?=\s)|\n")
"""End marks with the closing signs after them; a line break ends a sentence too."""

NO_SENTENCE_END = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|vs|etc|e\.g|i\.e)|\b[A-Z])\.\Z")
"""Abbreviations and initials, whose full stop does not end a sentence."""


def plain_text(text: str) -> str:
    """Return the text with composed letters (NFC) and straight quotes."""
    straight = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'"})
    return unicodedata.normalize("NFC", text).translate(straight)


def without_reasoning(text: str) -> str:
    """Return the text after its reasoning; empty if the reasoning does not end."""
    _, end, answer = text.rpartition("</think>")
    if end:
        return answer.strip()
    return text.partition("<think>")[0].strip()


def unfenced(text: str) -> str:
    """Return the content of a code fence that encloses the whole text, else the text."""
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n\s*```", text.strip(), re.DOTALL)
    return fenced[1] if fenced else text


def phrase_pattern(text: str) -> str:
    """Return a pattern that matches the text as whole words; `_` counts as markdown."""
    pattern = r"\s+".join(re.escape(word) for word in plain_text(text).split())
    before = r"(?<![^\W_])" if text[0].isalnum() else ""
    after = r"(?![^\W_])" if text[-1].isalnum() else ""
    return before + pattern + after


def opening_pattern(text: str) -> str:
    """Return a pattern of the text at the start, after any quotes and markdown.

    Before a text that starts with a sign, only white space may precede.
    """
    return (r"[\W_]*" if text[0].isalnum() else r"\s*") + phrase_pattern(text)


def bare_words(text: str) -> str:
    """Return the text in lower case, with single spaces and without signs around it."""
    inner = re.sub(r"\A[\W_]+|[\W_]+\Z", "", plain_text(text))
    return " ".join(inner.casefold().split())


def has_word(text: str) -> bool:
    """Return true if the text has a letter or digit."""
    return any(character.isalnum() for character in text)


def word_count(text: str) -> int:
    """Count parts between spaces or dashes with a letter or digit; list markers do not count."""
    return sum(has_word(part) for part in re.split(r"\s+|[—–]|--", LIST_MARKER.sub("", text)))


def sentence_count(text: str) -> int:
    """Count sentences; a last one without an end mark counts."""
    body = LIST_MARKER.sub("", plain_text(text))
    count, start = 0, 0
    for end in SENTENCE_END.finditer(body):
        sentence = body[start : end.end()]
        if NO_SENTENCE_END.search(sentence) or _continues(end[0], body[end.end() :]):
            continue
        count += has_word(sentence)
        start = end.end()
    return count + has_word(body[start:])


def _continues(end: str, rest: str) -> bool:
    """Return true within a sentence with a quotation, such as `"Stop!" he said.`."""
    return end[-1] in "\"'" and end[0] != "." and rest.lstrip()[:1].islower()
