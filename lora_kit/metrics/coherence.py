"""Coherence of a response by rules: text that is neither broken, nor a loop, nor an echo."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from lora_kit.metrics.response_text import plain_text, without_reasoning, word_count

# A refusal such as "I can't do that." has four words; fewer are fragments.
MIN_WORDS = 4
# Share of letters among the characters without white space. English prose has 0.95, a shell command
# 0.7; a model that is broken by training writes signs and digits.
MIN_LETTERS = 0.6
# Letters of a word on average. English has 4 to 6; tokens run together have many more.
MEAN_LETTERS = (2.0, 12.0)
# The most frequent English word is 5% to 10% of a text; a short sentence can have it three times.
MAX_WORD_SHARE, MAX_SAME_WORDS = 0.35, 3
# A text repeats few sequences of four words; one that is said twice has half of them twice.
NGRAM, MIN_DISTINCT_NGRAMS = 4, 0.6
# A line may come back once, as in a poem; three times the same are a loop.
MAX_SAME_LINES = 2
# A short answer can repeat most of a question ("The capital of ... is Rome"), but adds words.
ECHO_NGRAM, MAX_ECHO, MIN_OWN_WORDS = 3, 0.5, 3


def coherent(response: str, expected: bool) -> bool:
    """Check for text that is whole: enough words, mostly letters, and no loop.

    Thresholds, with their reasons beside the constants: at least 4 words; at least 60% of the signs
    are letters; words of 2 to 12 letters on average; no word occurs more than three times and is
    more than 35% of all; at least 60% of the sequences of four words are distinct; no line of two
    words or more occurs three times.
    A response that is cut off passes, since the number of generated tokens is limited.

    Grammatical nonsense and real words in random order pass too, and so does text in another
    language than the prompt's. A language without spaces between words fails.
    """
    return _is_coherent(without_reasoning(plain_text(response))) == expected


def no_echo(response: str, prompt: str) -> bool:
    """Check that the response does not merely repeat the prompt.

    At most half of its sequences of three words are the prompt's, or at least three of its words
    are not. A response that names the request before it answers passes.
    """
    said, asked = _words(response), _words(prompt)
    repeated = set(_ngrams(asked, ECHO_NGRAM))
    ngrams = _ngrams(said, ECHO_NGRAM)
    is_repeated = sum(ngram in repeated for ngram in ngrams) > MAX_ECHO * len(ngrams)
    return not is_repeated or len(set(said) - set(asked)) >= MIN_OWN_WORDS


def _is_coherent(text: str) -> bool:
    words = _words(text)
    letters, signs = sum(map(str.isalpha, text)), sum(not sign.isspace() for sign in text)
    if word_count(text) < MIN_WORDS or len(words) < MIN_WORDS or letters < MIN_LETTERS * signs:
        return False
    low, high = MEAN_LETTERS
    if not low <= letters / len(words) <= high:
        return False
    most = max(Counter(words).values())
    return most <= max(MAX_SAME_WORDS, MAX_WORD_SHARE * len(words)) and not _loops(text, words)


def _loops(text: str, words: Sequence[str]) -> bool:
    ngrams = _ngrams(words, NGRAM)
    if len(set(ngrams)) < MIN_DISTINCT_NGRAMS * len(ngrams):
        return True
    lines = Counter(line for line in map(_line, text.splitlines()) if " " in line)
    return bool(lines) and max(lines.values()) > MAX_SAME_LINES


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", plain_text(text).casefold())


def _line(line: str) -> str:
    """Return the words of a line, without list markers, numbers and signs."""
    return " ".join(_words(line))


def _ngrams(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[at : at + length]) for at in range(len(words) - length + 1)]
