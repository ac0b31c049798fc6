"""Logs of Inspect (`inspect_ai`), read by its own reader."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_kit.evaluation.imported.result import Columns, Result, TaskResults, cluster_of
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import EvaluationError, did_you_mean, first_line

INSTALL = "pip install 'lora-kit[inspect]'"
LOG_ENDING = ".eval"
# Beginning of a log in JSON, which may be large.
HEAD_BYTES = 4096
# Grades that Inspect's scorers write as words; its reader takes other words as 0.
GRADES = {"c", "i", "p", "n", "yes", "no", "true", "false"}


def is_inspect_log(path: Path) -> bool:
    """Return true for a log of Inspect: by its ending, or by its first keys in JSON."""
    if path.suffix == LOG_ENDING:
        return True
    if path.suffix != ".json":
        return False
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError:
        return False
    return head.lstrip().startswith("{") and '"eval"' in head and '"eval_id"' in head


def read_inspect_log(path: Path, columns: Columns) -> TaskResults:
    """Read the log of one task; the score of an item is the mean over its epochs.

    Args:
        path: log in either of Inspect's formats.
        columns: scorer, or `scorer/key` for one that gives several values; by default the first
            one that gives a number. The cluster is a field of the samples' metadata.

    Raises:
        EvaluationError: if Inspect is not installed, the log is not complete, or a score is no
            number.
    """
    log = _read(path)
    if log.status != "success":
        raise EvaluationError(
            f"{path}: not a complete evaluation (got status {log.status}). Fix: run `inspect "
            "eval-retry` on it"
        )
    samples = log.samples or []
    if not samples:
        raise EvaluationError(f"{path}: no samples (got an empty log). Fix: log the samples")
    metric = _metric(samples, columns.metric, path)
    by_item: dict[str, list[Any]] = defaultdict(list)
    for sample in samples:
        by_item[str(sample.id)].append(sample)
    items = {
        identifier: _result(identifier, epochs, metric, path, columns)
        for identifier, epochs in by_item.items()
    }
    return TaskResults(log.eval.task, path, "inspect", metric, None, items)


def _read(path: Path) -> Any:
    try:
        from inspect_ai.log import read_eval_log
    except ImportError as error:
        raise EvaluationError(
            f"{path}: a log of Inspect needs the package inspect-ai (got {error}). Fix: {INSTALL}"
        ) from error
    try:
        return read_eval_log(str(path))
    except Exception as error:  # of zip files, JSON and pydantic
        raise EvaluationError(
            f"{path}: cannot be read as a log of Inspect (got {first_line(error)}). Fix: run the "
            "evaluation again"
        ) from error


def _metric(samples: Sequence[Any], wanted: str | None, path: Path) -> str:
    # A sample that failed has no scores.
    values = _values(next((sample for sample in samples if sample.scores), samples[0]))
    names = [name for name, value in values.items() if _is_grade(value)]
    if not names:
        raise EvaluationError(
            f"{path}: no scorer gives a number (got {', '.join(values) or 'none'}). Fix: score the "
            "log again with another scorer"
        )
    if wanted and wanted not in names:
        raise EvaluationError(
            f"{path}: --metric: no such scorer (got {wanted!r}).{did_you_mean(wanted, names)} Fix: "
            f"use {', '.join(names)}"
        )
    if not wanted and len(names) > 1:
        say(
            f"{path}: scorer {names[0]} is judged, not {', '.join(names[1:])}; --metric chooses one"
        )
    return wanted or names[0]


def _values(sample: Any) -> dict[str, Any]:
    """Return the values of a sample by scorer, and `scorer/key` for several values of one."""
    values: dict[str, Any] = {}
    for name, score in (sample.scores or {}).items():
        if isinstance(score.value, Mapping):
            values |= {f"{name}/{key}": value for key, value in score.value.items()}
        else:
            values[name] = score.value
    return values


def _is_grade(value: Any) -> bool:
    is_word = isinstance(value, str) and value.lower() in GRADES
    return value is None or is_word or isinstance(value, bool | int | float)


def _result(
    identifier: str, epochs: Sequence[Any], metric: str, path: Path, columns: Columns
) -> Result:
    origin = f"{path}: sample {identifier}"
    numbers = [sample.epoch for sample in epochs]
    if len(set(numbers)) < len(numbers):
        raise EvaluationError(
            f"{origin}: an item has one result in each epoch (got the epochs "
            f"{', '.join(map(str, numbers))}). Fix: give each sample its own id"
        )
    first = epochs[0]
    scores = [_score(sample, metric, origin) for sample in epochs]
    known = [score for score in scores if score is not None]
    scorer = metric.partition("/")[0]
    answers = [(s.scores or {}).get(scorer) for s in epochs]
    target = first.target if isinstance(first.target, str) else "\n".join(first.target)
    prompt = _prompt(first)
    return Result(
        id=identifier,
        origin=origin,
        score=sum(known) / len(known) if len(known) == len(scores) else None,
        cluster=cluster_of(first.metadata or {}, columns.cluster, identifier, origin),
        asked={"input": prompt, "target": target, "epochs": str(len(epochs))},
        output="\n".join(
            str(answer.answer) if answer and answer.answer else s.output.completion
            for s, answer in zip(epochs, answers, strict=True)
        ),
        prompt=prompt,
        reference=target,
    )


def _score(sample: Any, metric: str, origin: str) -> float | None:
    """Return a sample's score; `None` after an error, or where the scorer gives none."""
    from inspect_ai.scorer import value_to_float

    value = _values(sample).get(metric)
    if sample.error is not None or value is None:
        return None
    if not _is_grade(value):
        raise EvaluationError(
            f"{origin}: {metric}: not a number (got {value!r:.60}). Fix: choose another scorer "
            "with --metric"
        )
    score = float(value_to_float()(value))
    return score if math.isfinite(score) else None


def _prompt(sample: Any) -> str:
    if isinstance(sample.input, str):
        return sample.input
    turns = [{"role": turn.role, "content": turn.text} for turn in sample.input]
    return json.dumps(turns, ensure_ascii=False)
