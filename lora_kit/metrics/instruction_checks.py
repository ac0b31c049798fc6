"""Whether a response does what its prompt asked for, decided by rule and not by a judge.

After IFEval (Zhou et al. 2023, arXiv:2311.07911): each prompt states constraints that a small pure
function can check. Kinds of check, prompts and code are our own. Where people would not care, the
checks do not either: upper case in a required word, markdown around it, curly quotes, a full stop
after a one-word answer.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Value = bool | int | str | tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """One constraint of a prompt; made with `Check.parse`, which validates it."""

    kind: str
    """A key of `CHECKS`."""
    value: Value

    @classmethod
    def parse(cls, mapping: object) -> Check:
        """The check that a YAML mapping `{kind: max_words, value: 12}` describes.

        Raises:
            ValueError: the kind is unknown or the value does not fit it.
        """
        kinds = f"possible kinds: {', '.join(sorted(CHECKS))}"
        if not isinstance(mapping, Mapping) or mapping.keys() != {"kind", "value"}:
            raise ValueError(f"a check has the keys kind and value, not {mapping!r}; {kinds}")
        kind, value = mapping["kind"], mapping["value"]
        if not isinstance(kind, str) or kind not in CHECKS:
            raise ValueError(f"unknown kind of check {kind!r}; {kinds}")
        group = next(group for group in GROUPS if kind in group.checks)
        if isinstance(value, list):
            value = tuple(value)
        if not group.fits(value):
            raise ValueError(f"check {kind!r} takes {group.takes}, not {value!r}; {kinds}")
        return cls(kind=kind, value=value)


def follows(response: str, checks: Sequence[Check]) -> bool:
    """Whether the response passes all checks.

    Raises:
        ValueError: there is nothing to check.
    """
    if not checks:
        raise ValueError("a response cannot follow an instruction without checks")
    # Silence, or a row of dots, would keep every rule on what to leave out.
    if not any(character.isalnum() for character in response):
        return False
    return all(CHECKS[check.kind](response, check.value) for check in checks)


# Words


def contains_words(response: str, words: Sequence[str]) -> bool:
    """All of the words or phrases occur, as whole words."""
    return all(re.search(_phrase(word), _plain(response), re.IGNORECASE) for word in words)


def omits_words(response: str, words: Sequence[str]) -> bool:
    """None of the words or phrases occurs as a whole word."""
    return not any(contains_words(response, [word]) for word in words)


def words(response: str, count: int) -> bool:
    """Exactly this many words."""
    return _word_count(response) == count


def min_words(response: str, count: int) -> bool:
    """This many words or more."""
    return _word_count(response) >= count


def max_words(response: str, count: int) -> bool:
    """This many words or fewer."""
    return _word_count(response) <= count


def starts_with(response: str, text: str) -> bool:
    """Quotes and markdown in front do not count, unless the text itself begins with a sign."""
    return re.match(_lead(text) + _phrase(text), _plain(response), re.IGNORECASE) is not None


def ends_with(response: str, text: str) -> bool:
    """Punctuation behind a final word does not count; behind a final sign, only closing quotes."""
    trail = r"[\W_]*\Z" if text[-1].isalnum() else r"[\s\"'*_)]*\Z"
    return re.search(_phrase(text) + trail, _plain(response), re.IGNORECASE) is not None


def first_letter(response: str, letter: str) -> bool:
    """The first word begins with the letter, in either case."""
    body = LIST_MARKER.sub("", _plain(response))
    first = next((character for character in body if character.isalnum()), "")
    return first.casefold() == letter.casefold()


def repeats_first(response: str, text: str) -> bool:
    """The text comes first and at least one word follows it."""
    plain = _plain(response)
    match = re.match(_lead(text) + _phrase(text), plain, re.IGNORECASE)
    return match is not None and _word_count(plain[match.end() :]) > 0


def choice(response: str, options: Sequence[str]) -> bool:
    """The response is one of the options and nothing else; signs around it do not count."""
    return _bare(response) in {_bare(option) for option in options}


# Characters


def lowercase(response: str, expected: bool) -> bool:
    """Has letters and none of them is a capital."""
    found = any(map(str.islower, response)) and not any(map(str.isupper, response))
    return found == expected


def uppercase(response: str, expected: bool) -> bool:
    """Has letters and all of them are capitals."""
    found = any(map(str.isupper, response)) and not any(map(str.islower, response))
    return found == expected


def digits(response: str, expected: bool) -> bool:
    """Has a digit; the numbers of a numbered list are digits too."""
    return any(map(str.isdigit, response)) == expected


def commas(response: str, expected: bool) -> bool:
    """Has a comma, be it only within a number."""
    return any(comma in response for comma in ",，、") == expected


def quoted(response: str, expected: bool) -> bool:
    """The whole response is in one pair of double quotes."""
    return (re.fullmatch(r'\s*"[^"]*\w[^"]*"\s*', _plain(response)) is not None) == expected


def bold(response: str, expected: bool) -> bool:
    """Has a part in markdown bold."""
    return (re.search(r"(\*\*|__)(?=\w)[^\n]*?(?<=\S)\1", response) is not None) == expected


# Shape


def sentences(response: str, count: int) -> bool:
    """Exactly this many sentences; a last one without an end mark counts."""
    return _sentence_count(response) == count


def max_sentences(response: str, count: int) -> bool:
    """This many sentences or fewer."""
    return _sentence_count(response) <= count


def lines(response: str, count: int) -> bool:
    """Lines with nothing to read on them do not count."""
    return sum(_has_word(line) for line in response.splitlines()) == count


def numbered_lines(response: str, count: int) -> bool:
    """The lines of a list, numbered from 1 on without a gap; other lines may stand around it."""
    numbers = re.findall(r"^[ \t]*(\d+)[.)][ \t]+\S", response, re.MULTILINE)
    return numbers == [str(number) for number in range(1, count + 1)]


def bulleted_lines(response: str, count: int) -> bool:
    """The lines that begin with a bullet; other lines may stand around them."""
    return len(re.findall(r"^[ \t]*[-*+•][ \t]+\S", response, re.MULTILINE)) == count


def comma_items(response: str, count: int) -> bool:
    """One line of items with a comma between each two; `a, b and c` has two items."""
    parts = response.strip().split(",")
    return len(parts) == count and "\n" not in response.strip() and all(map(_has_word, parts))


def json_keys(response: str, keys: Sequence[str]) -> bool:
    """The response is a JSON object, in a code fence or not, that has the keys."""
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n\s*```", response.strip(), re.DOTALL)
    try:
        value = json.loads(fenced[1] if fenced else response)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and all(key in value for key in keys)


# What the checks share

LIST_MARKER = re.compile(r"^[ \t]*(?:[-*+•]|\d+[.)])[ \t]+", re.MULTILINE)

SENTENCE_END = re.compile(r"[.!?…]+[\"')*_\]]*(?=\s)|\n")
"""End marks with the closing signs behind them; a line break ends a sentence too."""

NO_SENTENCE_END = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|vs|etc|e\.g|i\.e)|\b[A-Z])\.\Z")
"""Abbreviations and initials, whose full stop ends nothing."""


def _plain(text: str) -> str:
    """Composed letters, straight quotes: how a model encodes a sign is not what was asked."""
    straight = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'"})
    return unicodedata.normalize("NFC", text).translate(straight)


def _phrase(text: str) -> str:
    """Pattern of the text as whole words; `_` is markdown here and no part of a word."""
    pattern = r"\s+".join(re.escape(word) for word in _plain(text).split())
    before = r"(?<![^\W_])" if text[0].isalnum() else ""
    after = r"(?![^\W_])" if text[-1].isalnum() else ""
    return before + pattern + after


def _lead(text: str) -> str:
    return r"[\W_]*" if text[0].isalnum() else r"\s*"


def _bare(text: str) -> str:
    inner = re.sub(r"\A[\W_]+|[\W_]+\Z", "", _plain(text))
    return " ".join(inner.casefold().split())


def _has_word(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _word_count(text: str) -> int:
    """Parts between spaces or dashes that hold a letter or digit; list markers are no words."""
    return sum(_has_word(part) for part in re.split(r"\s+|[—–]|--", LIST_MARKER.sub("", text)))


def _sentence_count(text: str) -> int:
    body = LIST_MARKER.sub("", _plain(text))
    count, start = 0, 0
    for end in SENTENCE_END.finditer(body):
        sentence = body[start : end.end()]
        if NO_SENTENCE_END.search(sentence) or _goes_on(end[0], body[end.end() :]):
            continue
        count += _has_word(sentence)
        start = end.end()
    return count + _has_word(body[start:])


def _goes_on(end: str, rest: str) -> bool:
    """`"Stop!" he said.` is one sentence."""
    return end[-1] in "\"'" and end[0] != "." and rest.lstrip()[:1].islower()


# The registry. Grouped by what a check takes, so that each function keeps its own type.


@dataclass(frozen=True)
class Group:
    """The kinds of check whose values have the same type."""

    takes: str
    """The type in words, for the error message."""
    fits: Callable[[object], bool]
    checks: Mapping[str, Callable[[str, Any], bool]]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != "" and value == value.strip()


def _is_texts(value: object) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(map(_is_text, value))


COUNT_CHECKS: Mapping[str, Callable[[str, int], bool]] = {
    "words": words,
    "min_words": min_words,
    "max_words": max_words,
    "sentences": sentences,
    "max_sentences": max_sentences,
    "lines": lines,
    "numbered_lines": numbered_lines,
    "bulleted_lines": bulleted_lines,
    "comma_items": comma_items,
}
SWITCH_CHECKS: Mapping[str, Callable[[str, bool], bool]] = {
    "lowercase": lowercase,
    "uppercase": uppercase,
    "digits": digits,
    "commas": commas,
    "quoted": quoted,
    "bold": bold,
}
TEXT_CHECKS: Mapping[str, Callable[[str, str], bool]] = {
    "starts_with": starts_with,
    "ends_with": ends_with,
    "repeats_first": repeats_first,
}
LETTER_CHECKS: Mapping[str, Callable[[str, str], bool]] = {"first_letter": first_letter}
TEXTS_CHECKS: Mapping[str, Callable[[str, Sequence[str]], bool]] = {
    "contains_words": contains_words,
    "omits_words": omits_words,
    "choice": choice,
    "json_keys": json_keys,
}

GROUPS = (
    Group("a whole number above zero", _is_count, COUNT_CHECKS),
    Group("true or false", lambda value: isinstance(value, bool), SWITCH_CHECKS),
    Group("text without spaces around it", _is_text, TEXT_CHECKS),
    Group(
        "one letter",
        lambda value: isinstance(value, str) and len(value) == 1 and value.isalpha(),
        LETTER_CHECKS,
    ),
    Group("a list of texts", _is_texts, TEXTS_CHECKS),
)

CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
    kind: check for group in GROUPS for kind, check in group.checks.items()
}
"""All kinds of check: the response and the value in the YAML give whether it passes."""
