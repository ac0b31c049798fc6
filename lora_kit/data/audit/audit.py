"""The audit of training data: one pass over its rows, one over its examples."""

from __future__ import annotations

import dataclasses
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from lora_kit.data.audit.duplicates import TwinSearch
from lora_kit.data.audit.findings import Audit, Classes
from lora_kit.data.audit.item import AuditedItem, held_out_items
from lora_kit.data.audit.judgement import problems, warnings
from lora_kit.data.audit.leakage import LeakSearch
from lora_kit.data.audit.shift import Sample, shifts
from lora_kit.data.audit.tokens import tokens_of
from lora_kit.data.audit.words import label_of, parts_of, words_of
from lora_kit.data.rows import Row
from lora_kit.data.tokenization import Example
from lora_kit.recipe.data import AuditSpec
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BLOCK = 512


def audit(
    rows: Sequence[Row],
    examples: Sequence[Example],
    items: Sequence[AuditedItem],
    held_out: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    limits: AuditSpec,
) -> Audit:
    """Look for what is wrong with training data; nothing is refused here (see `refuse`).

    Rows and examples are gone over once, and kept as hashes: about 200 bytes a row. Items and
    held-out rows are kept whole.

    Args:
        rows: to train on, replay included.
        examples: what they were made into, cut ones marked; dropped ones may be missing.
        items: of all suites, see `lora_kit.evaluation.audited`.
        held_out: the validation rows.
        tokenizer: that made the examples.
        limits: `data.audit` of the recipe.
    """
    started = time.perf_counter()
    leaks = LeakSearch([*items, *held_out_items(held_out)])
    twins, sample = TwinSearch(), Sample.of(len(rows))
    labels: Counter[str] = Counter()
    origins = array("q")
    for block in _blocks(rows):
        texts = [parts_of(row) for row in block]
        words = [words_of(parts) for parts in texts]
        leaks.look(words, first_row=len(origins))
        twins.look(texts, words)
        sample.look(block, first_row=len(origins))
        labels.update(label for label in map(label_of, block) if label is not None)
        origins.extend(hash(row.origin) for row in block)
    leakage = leaks.result(rows)
    found = Audit(
        duplicates=twins.result(rows),
        leakage=leakage[:-1] if held_out else leakage,
        validation=leakage[-1] if held_out else None,
        tokens=tokens_of(rows, origins, examples, tokenizer),
        classes=Classes(dict(labels.most_common())),
        shifts=tuple(shifts(sample, held_out, items)),
    )
    return dataclasses.replace(
        found,
        problems=problems(found, limits),
        warnings=warnings(found, limits),
        seconds=time.perf_counter() - started,
    )


def refuse_known(
    rows: Sequence[Row], items: Sequence[AuditedItem], limit: float, field: str
) -> None:
    """Stop where texts that a model is held to are those by which it is measured.

    Args:
        rows: the texts.
        items: of all suites.
        limit: `data.audit.leakage` of the recipe.
        field: of the recipe, for the error.

    Raises:
        DataError: naming the first task of which more items than that stand in the texts.
    """
    leaks, first = LeakSearch(items), 0
    for block in _blocks(rows):
        leaks.look([words_of(parts_of(row)) for row in block], first_row=first)
        first += len(block)
    for found in leaks.result(rows):
        if found.share > limit:
            raise DataError(
                f"{field}.source: {found.leaked:,} of {found.items:,} items of {found.suite}/"
                f"{found.task} stand in these texts (data.audit.leakage: {limit:.1%}): held to "
                "them, the model would seem to forget nothing. Choose another source or split"
            )


def refuse(found: Audit) -> None:
    """Stop where a limit is passed.

    Raises:
        DataError: with everything that is past a limit, each with its remedy.
    """
    if found.problems:
        raise DataError("\n".join(found.problems))


def _blocks(rows: Sequence[Row]) -> Iterator[list[Row]]:
    remaining = iter(rows)
    while block := list(islice(remaining, _BLOCK)):
        yield block
