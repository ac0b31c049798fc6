"""What to look for in the training rows, for each evaluation item.

The rule is PaLM's (Chowdhery et al. 2022, arXiv:2204.02311, section 8): an item is contaminated if
at least 70% of its runs of eight words are in the training data. It is stricter here in two ways,
since a fine-tuning set is no crawl: one row has to hold them, and runs that are in many items of
the task, such as an instruction that comes before each, count for nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lora_kit.data.audit.item import AuditedItem
from lora_kit.data.audit.words import Hashes, runs_of, words_of

RUN = 8
"""Words of a run."""
COVERAGE = 0.7
"""Share of an item's runs that makes it contaminated."""
# A run in more than a tenth of a task's items, in 3 at least and 51 at most, is a template's.
_TEMPLATE_SHARE = 10
_FEWEST, _MOST = 2, 50


@dataclass(frozen=True)
class Sought:
    """What tells that a row holds an item.

    Attributes:
        words: (words,) uint64: the prompt; of an item without one, the text.
        runs: (runs,) uint64, those that are not a template's; of less than eight words, all as one.
        answers: that have to stand behind it; none where the words say all.
    """

    words: Hashes
    runs: Hashes
    answers: tuple[Hashes, ...]

    @property
    def size(self) -> int:
        """Words of a run."""
        return min(len(self.words), RUN)

    @property
    def needed(self) -> int:
        """Runs that make it contaminated; 1 of an item without words, which is never found."""
        return max(math.ceil(COVERAGE * len(self.runs)), 1)


def sought(items: Sequence[AuditedItem]) -> list[Sought]:
    """What to look for, for each item."""
    found: list[Sought | None] = [None] * len(items)
    by_task = defaultdict(list)
    for number, item in enumerate(items):
        by_task[item.suite, item.task].append(number)
    for numbers in by_task.values():
        plain = [_plain(items[number]) for number in numbers]
        templates = _templates(plain)
        for number, one in zip(numbers, plain, strict=True):
            found[number] = _without(templates, one)
    return [one for one in found if one is not None]


def _plain(item: AuditedItem) -> Sought:
    prompt = words_of([item.prompt]).hashes
    answers = tuple(
        hashes for hashes in (words_of([text]).hashes for text in item.answers) if len(hashes)
    )
    if len(prompt) or not answers:
        return Sought(prompt, runs_of(prompt, RUN), answers)
    return Sought(answers[0], runs_of(answers[0], RUN), ())


def _templates(task: Sequence[Sought]) -> Hashes:
    every, counts = np.unique(np.concatenate([one.runs for one in task]), return_counts=True)
    return every[counts > min(max(len(task) // _TEMPLATE_SHARE, _FEWEST), _MOST)]


def _without(templates: Hashes, one: Sought) -> Sought:
    """The item without its template; an item that is all template is told by its answer."""
    own = one.runs[~np.isin(one.runs, templates)]
    if len(own):
        return Sought(one.words, own, one.answers)
    if not one.answers:
        return one
    # Each run of these holds a word of the answer.
    words = np.concatenate([one.words[-(RUN - 1) :], one.answers[0]])
    return Sought(words, runs_of(words, RUN), ())
