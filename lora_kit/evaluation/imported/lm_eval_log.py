"""Samples that lm-evaluation-harness wrote with `--log_samples`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.evaluation.imported.result import Columns, Result, TaskResults, by_id, cluster_of
from lora_kit.evaluation.lm_eval.grading import MUTUAL_INFORMATION, most_likely
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import EvaluationError, did_you_mean
from lora_kit.runtime.files import read_json

SAMPLES = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d-]+(?:\.\d+)?)\.jsonl")
# Digests of the question, by which two files have the same items.
DIGESTS = {"doc_hash": "document", "prompt_hash": "prompt", "target_hash": "target"}
# Other fields of a sample; what is left are metrics. `bypass` stands for none (`--predict_only`).
FIELDS = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"}
FIELDS |= {"bypass"}


@dataclass(frozen=True)
class SamplesFile:
    """File of samples: its task and its date, which the file of results shares."""

    path: Path
    task: str
    date: str

    @classmethod
    def of(cls, path: Path) -> SamplesFile | None:
        """Return the file's task and date; `None` if it is not named as lm-eval does."""
        found = SAMPLES.fullmatch(path.name)
        return cls(path, found["task"], found["date"]) if found else None


def samples_in(folder: Path, field: str) -> list[SamplesFile]:
    """Return the newest file of each task in lm-eval's output folder.

    Raises:
        EvaluationError: if two folders in it hold the same task.
    """
    files = [SamplesFile.of(path) for path in folder.rglob("samples_*.jsonl")]
    newest: dict[str, SamplesFile] = {}
    for one in sorted(filter(None, files), key=lambda file: (file.date, file.path)):
        other = newest.get(one.task)
        if other is not None and other.path.parent != one.path.parent:
            raise EvaluationError(
                f"{field}: {folder}: two folders have samples of {one.task} (got "
                f"{other.path.parent} and {one.path.parent}). Fix: name one of them"
            )
        if other is not None:
            say(f"{other.path}: not read, {one.path.name} is newer")
        newest[one.task] = one
    return [newest[task] for task in sorted(newest)]


def is_samples(path: Path) -> bool:
    """Return true if the first line of a file is a sample of lm-eval."""
    try:
        with path.open(encoding="utf-8") as lines:
            row = json.loads(next(lines, ""))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, Mapping) and {"doc_id", "doc", "target"} <= row.keys()


def read_samples(path: Path, columns: Columns) -> TaskResults:
    """Read the samples of one task.

    Raises:
        EvaluationError: naming the line, if it cannot be read, or there is no such metric.
    """
    file = SamplesFile.of(path) or SamplesFile(path, path.stem, "")
    rows = list(_rows(path))
    if not rows:
        raise EvaluationError(f"{path}: no samples (got an empty file). Fix: name another file")
    metric, chosen = _metric(rows, columns.metric, path)
    selected = [(row, origin) for row, origin in rows if row.get("filter") == chosen]
    items = by_id(_result(row, origin, file.task, metric, columns) for row, origin in selected)
    # As lm-eval writes it: two files may have other filters before the same metric.
    full = metric if chosen in (None, "none") else f"{metric},{chosen}"
    return TaskResults(file.task, path, "lm-eval", full, _lower_is_better(file, metric), items)


def _rows(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"{path}: cannot be read ({error}). Fix: name another file"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        origin = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EvaluationError(
                f"{origin}: not valid JSON (got {error}). Fix: run lm-eval to its end again"
            ) from error
        if not isinstance(row, Mapping) or "doc_id" not in row:
            raise EvaluationError(
                f"{origin}: not a sample of lm-eval (got no `doc_id`). Fix: use what lm-eval wrote "
                "with --log_samples"
            )
        yield row, origin


def _metric(
    rows: Sequence[tuple[Mapping[str, Any], str]], wanted: str | None, path: Path
) -> tuple[str, Any]:
    """Return the metric that is the score, and the filter before it.

    Args:
        rows: samples with their origins.
        wanted: `metric` or `metric,filter`; by default the first of the file.
        path: file, for error messages.
    """
    name, _, chosen = (wanted or "").partition(",")
    filters = list(dict.fromkeys(row.get("filter") for row, _ in rows))
    if chosen and chosen not in filters:
        names = ", ".join(map(str, filters))
        raise EvaluationError(
            f"{path}: --metric: no such filter (got {chosen!r}). Fix: use one of {names}"
        )
    by = chosen or filters[0]
    if not chosen and len(filters) > 1:
        others = ", ".join(map(str, filters[1:]))
        say(f"{path}: filter {by} is judged, not {others}; --metric METRIC,FILTER chooses one")
    of_filter = [row for row, _ in rows if row.get("filter") == by]
    metrics = _metrics(of_filter[0])
    measured = [key for key, value in metrics.items() if _is_number(value)]
    if not measured:
        raise EvaluationError(
            f"{path}: no metric is a number of each item (got {', '.join(metrics) or 'none'}). "
            "Fix: use another task"
        )
    if name and name not in measured:
        raise EvaluationError(
            f"{path}: --metric: not a number of each item (got {name!r})."
            f"{did_you_mean(name, measured)} Fix: use {', '.join(measured)}"
        )
    return name or measured[0], by


def _metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: value for k, value in row.items() if k not in FIELDS and k not in DIGESTS}


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float)


def _result(
    row: Mapping[str, Any], origin: str, task: str, metric: str, columns: Columns
) -> Result:
    if not _is_number(row.get(metric)) or metric not in row:
        raise EvaluationError(
            f"{origin}: {metric}: not a number (got {row.get(metric)!r:.60}). Fix: choose another "
            "one with --metric"
        )
    score = row[metric]
    identifier = f"{task}/{row['doc_id']}"
    document = row.get("doc")
    fields = document if isinstance(document, Mapping) else {}
    measures = {
        key: float(value)
        for key, value in _metrics(row).items()
        if key != metric and value is not None and _is_number(value)
    }
    contexts, continuations = _arguments(row)
    likelihoods = _likelihoods(row)
    if MUTUAL_INFORMATION in row:  # each choice is asked again without its question
        asked = len(likelihoods) // 2
        contexts, continuations = contexts[:asked], continuations[:asked]
        likelihoods = likelihoods[:asked]
    choices = tuple(text.strip() for text in continuations) if len(likelihoods) > 1 else ()
    target = str(row.get("target", ""))
    answer = int(target) if choices and target.isdecimal() and int(target) < len(choices) else None
    return Result(
        id=identifier,
        origin=origin,
        score=None if score is None or not math.isfinite(score) else float(score),
        cluster=cluster_of(fields, columns.cluster, identifier, origin),
        asked={name: str(row[key]) for key, name in DIGESTS.items() if key in row},
        output=most_likely(choices, likelihoods, metric) if choices else _text(row),
        prompt="\n".join(dict.fromkeys(contexts)),
        reference=target if answer is None else choices[answer],
        measures={key: one for key, one in measures.items() if math.isfinite(one)},
        log_likelihoods=likelihoods,
        choices=choices,
        answer=answer,
    )


def _arguments(row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the contexts of a sample's requests, and their continuations or options."""
    requests = row.get("arguments")
    values = list(requests.values()) if isinstance(requests, Mapping) else list(requests or ())
    pairs = [list(one.values()) if isinstance(one, Mapping) else list(one) for one in values]
    return [str(pair[0]) for pair in pairs if pair], [str(p[1]) for p in pairs if len(p) > 1]


def _likelihoods(row: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the log-likelihoods of a sample's choices; none if it is a generated text."""
    answers = row.get("filtered_resps")
    pairs = [one for one in answers or () if isinstance(one, list | tuple) and len(one) == 2]
    try:
        return tuple(float(pair[0]) for pair in pairs)
    except (TypeError, ValueError):
        return ()


def _text(row: Mapping[str, Any]) -> str:
    return "\n".join(map(str, row.get("filtered_resps") or ()))


def _lower_is_better(file: SamplesFile, metric: str) -> bool | None:
    """Return the direction that the file of results of the same run gives; `None` without it."""
    path = file.path.with_name(f"results_{file.date}.json")
    if not path.is_file():
        return None
    directions = read_json(path, EvaluationError).get("higher_is_better", {})
    higher = directions.get(file.task, {}).get(metric) if isinstance(directions, Mapping) else None
    return None if higher is None else not higher
