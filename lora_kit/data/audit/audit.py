"""Audit of training data, in one pass over the rows and one over the examples."""

from __future__ import annotations

import dataclasses
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_kit.data.audit.duplicates import DuplicateSearch
from lora_kit.data.audit.findings import Audit, ClassBalance
from lora_kit.data.audit.groups import GroupSearch
from lora_kit.data.audit.item import AuditedItem, held_out_items
from lora_kit.data.audit.judgement import problems, warnings
from lora_kit.data.audit.leakage import LeakSearch
from lora_kit.data.audit.shift import TrainingSample, shifts
from lora_kit.data.audit.tokens import token_statistics
from lora_kit.data.audit.words import hash_words, row_texts
from lora_kit.data.row_sets import read_blocks
from lora_kit.data.rows import Row
from lora_kit.data.supervision import Example
from lora_kit.recipe.data import AuditSpec
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def audit(
    rows: Sequence[Row],
    examples: Sequence[Example],
    items: Sequence[AuditedItem],
    held_out: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    limits: AuditSpec,
) -> Audit:
    """Audit training data for duplicates, leaked items, truncation, class balance and shift.

    Problems are reported, not raised (see `refuse_problems`). Rows and examples are read once and
    held as hashes, about 200 bytes per row; items and held-out rows are held in memory.

    Args:
        rows: training rows, including replay.
        examples: examples made of the rows; dropped ones may be missing.
        items: evaluation items of all suites (see `lora_kit.evaluation.audited`).
        held_out: validation rows.
        tokenizer: tokenizer that made the examples.
        limits: the recipe's `data.audit`.
    """
    started = time.perf_counter()
    asked = [*items, *held_out_items(held_out)]
    leaks, groups = LeakSearch(asked), GroupSearch(asked)
    duplicates, sample = DuplicateSearch(), TrainingSample.of(len(rows))
    labels: Counter[str] = Counter()
    origins = array("q")
    for block, _ in read_blocks(rows):
        texts = [row_texts(row) for row in block]
        words = [hash_words(parts) for parts in texts]
        leaks.update(words, first_row=len(origins))
        duplicates.update(texts, words)
        groups.update(block)
        sample.update(block, first_row=len(origins))
        labels.update(row.label for row in block if row.label is not None)
        origins.extend(hash(row.origin) for row in block)
    leakage = leaks.result(rows)
    result = Audit(
        duplicates=duplicates.result(rows),
        leakage=leakage[:-1] if held_out else leakage,
        validation=leakage[-1] if held_out else None,
        tokens=token_statistics(rows, origins, examples, tokenizer),
        classes=ClassBalance(dict(labels.most_common())),
        shifts=tuple(shifts(sample, held_out, items)),
        groups=groups.result(),
    )
    return dataclasses.replace(
        result,
        problems=problems(result, limits),
        warnings=warnings(result, limits),
        seconds=time.perf_counter() - started,
    )


def refuse_leaked_items(
    rows: Sequence[Row], items: Sequence[AuditedItem], limit: float, field: str
) -> None:
    """Refuse retention texts that contain evaluation items.

    Args:
        rows: rows of the retention texts.
        items: evaluation items of all suites.
        limit: the recipe's `data.audit.leakage`, as a fraction of a task's items.
        field: recipe field of the texts, for the error message.

    Raises:
        DataError: if more items of a task than `limit` are in the texts; the message names the
            first such task.
    """
    leaks, first = LeakSearch(items), 0
    for block, _ in read_blocks(rows):
        leaks.update([hash_words(row_texts(row)) for row in block], first_row=first)
        first += len(block)
    for leakage in leaks.result(rows):
        if leakage.share > limit:
            raise DataError(
                f"{field}.source: the texts contain evaluation items, which would hide forgetting "
                f"(got {leakage.leaked:,} of {leakage.items:,} items of "
                f"{leakage.suite}/{leakage.task}, allowed: {limit:.1%}). Fix: use another source "
                "or split"
            )


def refuse_problems(result: Audit) -> None:
    """Refuse training data that exceeds a limit of `data.audit`.

    Raises:
        DataError: if a limit is exceeded; the message has one line per problem.
    """
    if result.problems:
        raise DataError("\n".join(result.problems))
