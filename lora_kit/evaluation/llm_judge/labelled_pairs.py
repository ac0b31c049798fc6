"""Labelled pairs: answers of which people say which is better, and pairs for them to label."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from lora_kit.data.files.readers import TableRequest
from lora_kit.data.files.tables import read_table
from lora_kit.data.formats import parse_row
from lora_kit.evaluation.llm_judge.judgements import Judgement
from lora_kit.evaluation.llm_judge.prompts import AnswerPair
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.files import write_text
from lora_kit.statistics.judged_preference import JudgeAccuracy

TO_LABEL = "pairs_to_label-{task}.jsonl"
LABELS = ("first", "second", "tie")
# Fewest labelled pairs behind the sensitivity, and behind the specificity.
LEAST_PAIRS = 10
# Most pairs that are written for labelling.
MOST_WRITTEN = 200
FIX_LABELS = "Fix: label more pairs, or set `in_verdict: false` without `judge.calibration`"


@dataclass(frozen=True)
class LabelledPair:
    """Two answers, and which of them is better.

    Attributes:
        pair: the answers; the second one is the adapter's, or the better one where the label does
            not say whose they are.
        label: 1 if the second answer is better, 0 if the first one is, 0.5 for a tie.
        has_arms: true if the second answer is known to be the adapter's.
    """

    pair: AnswerPair
    label: float
    has_arms: bool


def read_labelled_pairs(path: str, task: str) -> list[LabelledPair]:
    """Read labelled pairs; pairs that are not labelled yet are left out.

    Args:
        path: file of pairs.
        task: name of the task, for messages.

    Raises:
        DataError: if a row is invalid, or too few are labelled.
    """
    field = f"task {task}: judge.calibration"
    rows = list(read_table(TableRequest(path, field)))
    pairs = [one for value, origin in rows if (one := _labelled(value, origin)) is not None]
    decided = [pair for pair in pairs if pair.label != 0.5]
    least = LEAST_PAIRS
    if all(pair.has_arms for pair in decided):
        found = min(sum(pair.label == better for pair in decided) for better in (0, 1))
        kind = "pairs in which the adapter's answer is better, and as many in which the base's is"
    else:
        found, kind = len(decided), "pairs with a better answer"
    if found < least:
        raise DataError(
            f"{field}: needs {least} {kind} (got {found} in {len(rows)} rows of {path}). "
            f"{FIX_LABELS}"
        )
    return pairs


def _labelled(value: Mapping[str, Any], origin: str) -> LabelledPair | None:
    if {"first", "second"} <= set(value):
        return _compared(value, origin)
    row = parse_row(value, origin, "preference", needed=("preference",))
    request = "\n\n".join(message.content for message in row.prompt_turns)
    pair = AnswerPair(request, row.rejected[-1].content, row.messages[-1].content)
    return LabelledPair(pair, 1.0, False)


def _compared(value: Mapping[str, Any], origin: str) -> LabelledPair | None:
    texts = [value.get(name) for name in ("prompt", "first", "second")]
    prompt, first, second = (one if isinstance(one, str) else None for one in texts)
    if prompt is None or first is None or second is None:
        raise DataError(
            f"{origin}: `prompt`, `first` and `second` are texts (got "
            f"{', '.join(type(one).__name__ for one in texts)}). Fix: correct the row"
        )
    preferred = value.get("preferred")
    if preferred in (None, ""):
        return None
    if preferred not in LABELS:
        raise DataError(
            f"{origin}: preferred: unknown label (got {preferred!r:.80}). Fix: write one of "
            f"{', '.join(LABELS)}, or nothing if the pair is not labelled"
        )
    label = {"first": 0.0, "second": 1.0, "tie": 0.5}[str(preferred)]
    pair = AnswerPair(prompt, first, second)
    item, key = value.get("item"), value.get("key")
    if item is not None and key in (_key(str(item), False), _key(str(item), True)):
        adapter_first = key == _key(str(item), True)
        return LabelledPair(
            pair.swapped if adapter_first else pair, 1 - label if adapter_first else label, True
        )
    if label == 0.5:
        return LabelledPair(pair, label, False)
    return LabelledPair(pair if label else pair.swapped, 1.0, False)


def measure_accuracy(
    labelled: Sequence[LabelledPair], judgements: Mapping[AnswerPair, Judgement]
) -> JudgeAccuracy:
    """Return a judge's agreement with labelled pairs; ties of the labels say nothing.

    Where one label does not say whose the answers are, none is taken to.
    """
    decided = [one for one in labelled if one.label != 0.5]
    scores = [(one.label, judgements[one.pair].score) for one in decided]
    if not all(one.has_arms for one in decided):
        # The judged score of the answer that is labelled better.
        right = [score if label else 1 - score for label, score in scores]
        share = float(np.mean(right))
        return JudgeAccuracy(share, len(right), share, len(right), True)
    better = [score for label, score in scores if label]
    worse = [1 - score for label, score in scores if not label]
    return JudgeAccuracy(
        float(np.mean(better)), len(better), float(np.mean(worse)), len(worse), False
    )


def to_label_path(directory: Path, task: str) -> Path:
    """Return the path of the pairs of a task that are to be labelled."""
    return directory / TO_LABEL.format(task=re.sub(r"[^\w.-]", "-", task))


def write_pairs_to_label(path: Path, pairs: Mapping[str, AnswerPair]) -> None:
    """Write pairs for labelling, each in an order that does not tell whose an answer is.

    A file with labels is left as it is.

    Args:
        path: file to write.
        pairs: answers of base and adapter, in this order, by item.
    """
    if path.is_file() and _has_labels(path):
        say(f"{path}: has labels, and is left as it is; move it to get the pairs of these answers")
        return
    drawn = sorted(pairs, key=lambda item: sha256(item.encode()).hexdigest())[:MOST_WRITTEN]
    lines = []
    for item in drawn:
        adapter_first = sha256(f"{item}/order".encode()).digest()[0] % 2 == 0
        pair = pairs[item].swapped if adapter_first else pairs[item]
        row = {"prompt": pair.request, "first": pair.first, "second": pair.second}
        row |= {"preferred": "", "item": item, "key": _key(item, adapter_first)}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def _has_labels(path: Path) -> bool:
    try:
        return any(row.get("preferred") for row, _ in read_table(TableRequest(str(path), "labels")))
    except DataError:
        return True  # somebody has written into it


def _key(item: str, adapter_first: bool) -> str:
    order = "adapter, base" if adapter_first else "base, adapter"
    return sha256(f"{item}/{order}".encode()).hexdigest()[:16]
