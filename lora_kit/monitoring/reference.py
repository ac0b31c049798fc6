"""Texts that an adapter was trained and judged on, which a stream is compared with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_kit.data.audit.shift import MAX_ROWS
from lora_kit.data.dataset import open_rows
from lora_kit.data.row_sets import Rows
from lora_kit.data.rows import Row
from lora_kit.evaluation.assembly import LEDGER
from lora_kit.evaluation.audited import asked_text
from lora_kit.evaluation.ledger import Entry, Ledger
from lora_kit.evaluation.ledger_view import ADAPTER_ARM
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict_file import read_suites
from lora_kit.monitoring.target import MonitoredAdapter
from lora_kit.monitoring.texts import read_texts, row_text
from lora_kit.recipe.objective import FORMATS_OF
from lora_kit.runtime.errors import DataError, EvaluationError

LEAST_REFERENCE = 40
"""Least number of texts of a reference: half of them train the classifier."""


@dataclass(frozen=True)
class ReferenceText:
    """Text of the reference.

    Attributes:
        text: prompt of a row or an item, without its answer and the text of a template.
        cluster: name of a group of dependent texts.
    """

    text: str
    cluster: str


@dataclass(frozen=True)
class Reference:
    """Reference of a stream.

    Attributes:
        texts: the texts.
        parts: number and kind of the texts, such as `64 items of docstrings`.
        notes: parts that are missing, with the reason.
    """

    texts: tuple[ReferenceText, ...]
    parts: tuple[str, ...]
    notes: tuple[str, ...] = ()


def judged_entries(target: MonitoredAdapter) -> dict[str, list[Entry]]:
    """Return the adapter's results on the items of each gain suite, by the suite's name.

    Tasks of lm-evaluation-harness are left out: their prompts contain solved examples.
    """
    ledger = Ledger(target.evaluation / LEDGER)
    texts = ("prompt", "reference", "output")
    return {
        suite.name: [
            entry
            for task in suite.tasks
            if task.kind != "lm_eval"
            for entry in ledger.arms(suite.name, task.name, texts).get(ADAPTER_ARM, {}).values()
        ]
        for suite in _gain_suites(target)
    }


def _gain_suites(target: MonitoredAdapter) -> list[Suite]:
    return [suite for suite in read_suites(target.evaluation) if suite.role == "gain"]


def judged_texts(target: MonitoredAdapter) -> dict[str, list[ReferenceText]]:
    """Return the prompts of each gain suite's items, each once, by the suite's name."""
    entries = judged_entries(target)
    found = {}
    for suite in _gain_suites(target):
        specs = {task.name: task for task in suite.tasks}
        texts = {
            # A text that is scored by its likelihood has no prompt.
            asked_text(specs[one.task], one.prompt) or one.reference: f"{suite.name}/{one.cluster}"
            for one in entries[suite.name]
        }
        found[suite.name] = [
            ReferenceText(text, cluster) for text, cluster in texts.items() if text.strip()
        ]
    return {name: texts for name, texts in found.items() if texts}


def read_reference(
    target: MonitoredAdapter, given: Path | None, cluster: str | None = None
) -> Reference:
    """Return the training rows and the items of the gain suites, or the texts of a file.

    Training rows are read again from their sources. If a source is gone, the items stand alone.

    Args:
        target: run or release.
        given: file of texts to compare with instead.
        cluster: field of that file whose value is shared by texts that are not independent.

    Raises:
        DataError: if the training rows are not those of the training, a row is malformed, or there
            are too few texts.
    """
    if given is not None:
        formats = FORMATS_OF.get(target.recipe.training.objective, ())
        read = read_texts(given, "--reference", cluster, formats)
        texts = [ReferenceText(one.text, one.cluster or one.origin) for one in read]
        return _enough(Reference(tuple(texts), (f"{len(texts):,} texts of {given}",)))
    judged = judged_texts(target)
    parts = [f"{len(texts):,} items of {name}" for name, texts in judged.items()]
    texts = [one for of_suite in judged.values() for one in of_suite]
    try:
        rows = _training_rows(target)
    except DataError as error:
        note = f"The training rows cannot be read, so that only items are compared with: {error}"
        return _enough(Reference(tuple(texts), tuple(parts), (note,)))
    sample = _sample(rows)
    parts.insert(0, f"{len(sample):,} of {len(rows):,} training rows")
    trained = [
        ReferenceText(text, f"training/{row.cluster}") for row in sample if (text := row_text(row))
    ]
    return _enough(Reference((*trained, *texts), tuple(parts)))


def _training_rows(target: MonitoredAdapter) -> Rows:
    """Open the training rows, without replay, and compare them with the record.

    Raises:
        EvaluationError: if they are other rows than those of the training.
        DataError: if a source cannot be opened.
    """
    recipe = target.recipe
    rows = open_rows(recipe.data, recipe.seed, recipe.training.objective)
    digest = target.data.get("rows_digest")
    if digest is not None:
        same = digest == rows.digest()
    else:
        # A record of an earlier version has only their number.
        same = len(rows) == target.data.get("rows", 0) - target.data.get("replay_rows", 0)
    if not same:
        raise EvaluationError(
            f"{target.root}: the rows of data.train differ from those of the training (got "
            f"{len(rows):,} rows). Fix: restore the files, or name texts to compare with by "
            "--reference"
        )
    return rows


def _sample(rows: Rows) -> Sequence[Row]:
    chosen = np.zeros(len(rows), dtype=np.bool_)
    chosen[random.Random("monitor").sample(range(len(rows)), min(len(rows), MAX_ROWS))] = True
    return rows.select(chosen).read()


def _enough(found: Reference) -> Reference:
    if len(found.texts) < LEAST_REFERENCE:
        raise DataError(
            f"--reference: too few texts to compare with, at least {LEAST_REFERENCE} (got "
            f"{'; '.join(found.parts) or 'none'}). Fix: name a file of more texts with --reference"
            + "".join(f" ({note})" for note in found.notes)
        )
    return found
