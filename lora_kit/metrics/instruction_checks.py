"""Rule-based checks of instruction following, without a judge model.

As in IFEval (Zhou et al. 2023, arXiv:2311.07911), each prompt states constraints that a small pure
function can check. Kinds of check, prompts and code are our own. The checks ignore differences that
people would accept: upper case in a required word, markdown around it, curly quotes, a full stop
after a one-word answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_kit.metrics.coherence import coherent, no_echo
from lora_kit.metrics.expected_calls import NO_CALLS, calls, check_calls
from lora_kit.metrics.json_schemas import check_schema, json_schema
from lora_kit.metrics.refusals import refuses
from lora_kit.metrics.response_text import (
    LIST_MARKER,
    bare_words,
    has_word,
    opening_pattern,
    phrase_pattern,
    plain_text,
    sentence_count,
    unfenced,
    word_count,
)

# Plain values, since a digest of the items covers them.
CheckValue = bool | int | str | tuple[str, ...] | Mapping[str, Any] | tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class InstructionCheck:
    """Constraint of a prompt, created and validated by `InstructionCheck.parse`."""

    kind: str
    """Key of `CHECK_FUNCTIONS`."""
    value: CheckValue

    @classmethod
    def parse(cls, mapping: object) -> InstructionCheck:
        """Create a check from a YAML mapping such as `{kind: max_words, value: 12}`.

        Raises:
            ValueError: if the kind is unknown, or the value does not fit the kind.
        """
        kinds = f"possible kinds: {', '.join(sorted(CHECK_FUNCTIONS))}"
        if not isinstance(mapping, Mapping) or mapping.keys() != {"kind", "value"}:
            raise ValueError(
                f"check: expected the keys kind and value (got {mapping!r}). Fix: write "
                f"{{kind: max_words, value: 12}}; {kinds}"
            )
        kind, value = mapping["kind"], mapping["value"]
        if not isinstance(kind, str) or kind not in CHECK_FUNCTIONS:
            raise ValueError(f"check: unknown kind (got {kind!r}). Fix: use one of the {kinds}")
        group = next(group for group in CHECK_GROUPS if kind in group.checks)
        if isinstance(value, list):
            value = tuple(value)
        if not group.fits(value):
            raise ValueError(
                f"check {kind!r} takes {group.takes} (got {value!r}). Fix: correct the "
                f"value, or use another kind; {kinds}"
            )
        try:
            return cls(kind=kind, value=group.read(value))
        except ValueError as error:
            raise ValueError(f"{kind}: {error}") from error


def follows_instructions(response: str, checks: Sequence[InstructionCheck]) -> bool:
    """Return true if the response passes all checks.

    Raises:
        ValueError: without checks.
    """
    if not checks:
        raise ValueError(
            "checks: a response cannot follow an instruction without checks (got none)"
        )
    # An empty response, or a row of dots, would pass every check that forbids something.
    if not has_word(response):
        return False
    return all(CHECK_FUNCTIONS[check.kind](response, check.value) for check in checks)


# Words


def contains_words(response: str, words: Sequence[str]) -> bool:
    """Check that all words or phrases occur as whole words."""
    return all(
        re.search(phrase_pattern(word), plain_text(response), re.IGNORECASE) for word in words
    )


def contains_any(response: str, words: Sequence[str]) -> bool:
    """Check that at least one word or phrase occurs as a whole word."""
    return any(contains_words(response, [word]) for word in words)


def omits_words(response: str, words: Sequence[str]) -> bool:
    """Check that no word or phrase occurs as a whole word."""
    return not contains_any(response, words)


def words(response: str, count: int) -> bool:
    """Check for an exact number of words."""
    return word_count(response) == count


def min_words(response: str, count: int) -> bool:
    """Check for a minimum number of words."""
    return word_count(response) >= count


def max_words(response: str, count: int) -> bool:
    """Check for a maximum number of words."""
    return word_count(response) <= count


def starts_with(response: str, text: str) -> bool:
    """Check the start; quotes and markdown before a text that starts with a letter are ignored."""
    return re.match(opening_pattern(text), plain_text(response), re.IGNORECASE) is not None


def ends_with(response: str, text: str) -> bool:
    """Check the end; punctuation after a final word and quotes after a final sign are ignored."""
    trail = r"[\W_]*\Z" if text[-1].isalnum() else r"[\s\"'*_)]*\Z"
    return re.search(phrase_pattern(text) + trail, plain_text(response), re.IGNORECASE) is not None


def first_letter(response: str, letter: str) -> bool:
    """Check the first letter of the first word, in either case."""
    body = LIST_MARKER.sub("", plain_text(response))
    first = next((character for character in body if character.isalnum()), "")
    return first.casefold() == letter.casefold()


def repeats_first(response: str, text: str) -> bool:
    """Check that the text comes first, followed by at least one word."""
    plain = plain_text(response)
    match = re.match(opening_pattern(text), plain, re.IGNORECASE)
    return match is not None and word_count(plain[match.end() :]) > 0


def choice(response: str, options: Sequence[str]) -> bool:
    """Check that the response is one of the options; signs around it are ignored."""
    return bare_words(response) in {bare_words(option) for option in options}


# Characters


def lowercase(response: str, expected: bool) -> bool:
    """Check for letters without any capital."""
    is_lowercase = any(map(str.islower, response)) and not any(map(str.isupper, response))
    return is_lowercase == expected


def uppercase(response: str, expected: bool) -> bool:
    """Check for letters that are all capitals."""
    is_uppercase = any(map(str.isupper, response)) and not any(map(str.islower, response))
    return is_uppercase == expected


def digits(response: str, expected: bool) -> bool:
    """Check for a digit; the numbers of a numbered list count."""
    return any(map(str.isdigit, response)) == expected


def commas(response: str, expected: bool) -> bool:
    """Check for a comma; commas within numbers count."""
    return any(comma in response for comma in ",，、") == expected


def quoted(response: str, expected: bool) -> bool:
    """Check that one pair of double quotes encloses the response."""
    return (re.fullmatch(r'\s*"[^"]*\w[^"]*"\s*', plain_text(response)) is not None) == expected


def bold(response: str, expected: bool) -> bool:
    """Check for text in markdown bold."""
    return (re.search(r"(\*\*|__)(?=\w)[^\n]*?(?<=\S)\1", response) is not None) == expected


# Shape


def sentences(response: str, count: int) -> bool:
    """Check for an exact number of sentences; a last one without an end mark counts."""
    return sentence_count(response) == count


def max_sentences(response: str, count: int) -> bool:
    """Check for a maximum number of sentences."""
    return sentence_count(response) <= count


def lines(response: str, count: int) -> bool:
    """Check for an exact number of lines; lines without letters or digits do not count."""
    return sum(has_word(line) for line in response.splitlines()) == count


def numbered_lines(response: str, count: int) -> bool:
    """Check for a list numbered from 1 without gaps; other lines around it are allowed."""
    numbers = re.findall(r"^[ \t]*(\d+)[.)][ \t]+\S", response, re.MULTILINE)
    return numbers == [str(number) for number in range(1, count + 1)]


def bulleted_lines(response: str, count: int) -> bool:
    """Check for an exact number of bulleted lines; other lines are allowed."""
    return len(re.findall(r"^[ \t]*[-*+•][ \t]+\S", response, re.MULTILINE)) == count


def comma_items(response: str, count: int) -> bool:
    """Check for one line of items separated by commas; `a, b and c` has two items."""
    parts = response.strip().split(",")
    return len(parts) == count and "\n" not in response.strip() and all(map(has_word, parts))


def json_keys(response: str, keys: Sequence[str]) -> bool:
    """Check for a JSON object with the keys, optionally in a code fence."""
    try:
        value = json.loads(unfenced(response))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and all(key in value for key in keys)


# Registry, grouped by the type of the value, so that each function keeps its own type.


@dataclass(frozen=True)
class CheckGroup:
    """Kinds of check whose values have the same type."""

    takes: str
    """Type in words, for the error message."""
    fits: Callable[[object], bool]
    checks: Mapping[str, Callable[[str, Any], bool]]
    read: Callable[[Any], CheckValue] = lambda value: value
    """Returns a value that fits, or raises a ValueError that says where it is wrong."""


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
    "refuses": refuses,
    "coherent": coherent,
}
TEXT_CHECKS: Mapping[str, Callable[[str, str], bool]] = {
    "starts_with": starts_with,
    "ends_with": ends_with,
    "repeats_first": repeats_first,
    "no_echo": no_echo,
}
LETTER_CHECKS: Mapping[str, Callable[[str, str], bool]] = {"first_letter": first_letter}
TEXTS_CHECKS: Mapping[str, Callable[[str, Sequence[str]], bool]] = {
    "contains_words": contains_words,
    "contains_any": contains_any,
    "omits_words": omits_words,
    "choice": choice,
    "json_keys": json_keys,
}

CHECK_GROUPS = (
    CheckGroup("a whole number above zero", _is_count, COUNT_CHECKS),
    CheckGroup("true or false", lambda value: isinstance(value, bool), SWITCH_CHECKS),
    CheckGroup("text without spaces around it", _is_text, TEXT_CHECKS),
    CheckGroup(
        "one letter",
        lambda value: isinstance(value, str) and len(value) == 1 and value.isalpha(),
        LETTER_CHECKS,
    ),
    CheckGroup("a list of texts", _is_texts, TEXTS_CHECKS),
    CheckGroup(
        "a JSON Schema",
        lambda value: isinstance(value, Mapping),
        {"json_schema": json_schema},
        check_schema,
    ),
    CheckGroup(
        "a call, a list of calls, or none",
        lambda value: value == NO_CALLS or isinstance(value, Mapping | tuple),
        {"calls": calls},
        check_calls,
    ),
)

CHECK_FUNCTIONS: Mapping[str, Callable[[str, Any], bool]] = {
    kind: check for group in CHECK_GROUPS for kind, check in group.checks.items()
}
"""Check functions by kind: from the response and the value in the YAML to true or false."""
