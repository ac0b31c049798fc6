"""Search patterns that identify evaluation items in training rows.

The rule is that of PaLM (Chowdhery et al. 2022, arXiv:2204.02311, section 8): an item is
contaminated if at least 70% of its 8-grams of words are in the training data. Two changes adapt
the rule to fine-tuning data, which is no crawl: one row must contain the n-grams, and n-grams
shared by many items of a task, such as a common instruction, are ignored.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lora_kit.data.audit.item import AuditedItem
from lora_kit.data.audit.words import Hashes, hash_words, unique_ngrams

NGRAM_WORDS = 8
"""Words per n-gram."""
COVERAGE = 0.7
"""Minimum fraction of an item's n-grams in one row."""
# An n-gram in more than 1/10 of a task's items belongs to the task's template; the number of items
# above which this holds is at least 2 and at most 50.
_TEMPLATE_DIVISOR = 10
_MIN_SHARED, _MAX_SHARED = 2, 50


@dataclass(frozen=True)
class SearchPattern:
    """Words and n-grams that identify an item in a row.

    Attributes:
        words: (words,) uint64, hashed words of the prompt, or of the text if there is no prompt.
        ngrams: (ngrams,) uint64, n-grams of `words` that are not part of the template; fewer than
            eight words give one n-gram of all words.
        answers: (words,) uint64 each, answers of which one must follow `words`; empty if `words`
            identify the item.
    """

    words: Hashes
    ngrams: Hashes
    answers: tuple[Hashes, ...]

    @property
    def size(self) -> int:
        """Return the words per n-gram of this pattern."""
        return min(len(self.words), NGRAM_WORDS)

    @property
    def needed(self) -> int:
        """Return the number of n-grams required in a row, at least 1."""
        return max(math.ceil(COVERAGE * len(self.ngrams)), 1)


def search_patterns(items: Sequence[AuditedItem]) -> list[SearchPattern]:
    """Build the search pattern of each item, in order."""
    patterns: dict[int, SearchPattern] = {}
    by_task = defaultdict(list)
    for number, item in enumerate(items):
        by_task[item.suite, item.task].append(number)
    for numbers in by_task.values():
        plain = [_plain(items[number]) for number in numbers]
        every, counts = np.unique(np.concatenate([one.ngrams for one in plain]), return_counts=True)
        shared = min(max(len(plain) // _TEMPLATE_DIVISOR, _MIN_SHARED), _MAX_SHARED)
        templates = every[counts > shared]
        for number, one in zip(numbers, plain, strict=True):
            patterns[number] = _without_template(templates, one)
    return [patterns[number] for number in range(len(items))]


def _plain(item: AuditedItem) -> SearchPattern:
    prompt = hash_words([item.prompt]).hashes
    answers = tuple(
        hashes for hashes in (hash_words([text]).hashes for text in item.answers) if len(hashes)
    )
    if len(prompt) or not answers:
        return SearchPattern(prompt, unique_ngrams(prompt, NGRAM_WORDS), answers)
    return SearchPattern(answers[0], unique_ngrams(answers[0], NGRAM_WORDS), ())


def _without_template(templates: Hashes, one: SearchPattern) -> SearchPattern:
    """Drop n-grams of the template; a prompt that is all template is identified by its answer."""
    own = one.ngrams[~np.isin(one.ngrams, templates)]
    if len(own):
        return SearchPattern(one.words, own, one.answers)
    if not one.answers:
        return one
    # Each n-gram of these words has a word of the answer.
    words = np.concatenate([one.words[-(NGRAM_WORDS - 1) :], one.answers[0]])
    return SearchPattern(words, unique_ngrams(words, NGRAM_WORDS), ())
