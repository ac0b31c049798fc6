"""Files of results by their kind: logs of lm-eval and of Inspect, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_kit.data.files.datafiles import file_kind
from lora_kit.evaluation.imported.inspect_log import LOG_ENDING, is_inspect_log, read_inspect_log
from lora_kit.evaluation.imported.lm_eval_log import is_samples, read_samples, samples_in
from lora_kit.evaluation.imported.result import Columns, TaskResults
from lora_kit.evaluation.imported.table import read_score_table
from lora_kit.runtime.errors import EvaluationError

POSSIBLE = (
    "lm-eval's samples (--log_samples) or the folder of them, a log of Inspect (.eval, .json), or "
    "rows of `id` and `score` (.jsonl, .json, .csv, .parquet)"
)


def read_results(path: Path, columns: Columns, field: str) -> dict[str, TaskResults]:
    """Read all results of a file or a folder, by task.

    Args:
        path: file or folder.
        columns: parts of the files that are read.
        field: option that named the path, for error messages.

    Raises:
        LoraKitError: if it is none of the supported kinds, or a result is invalid; names file and
            line.
    """
    path = path.expanduser()
    if not path.exists():
        raise EvaluationError(f"{field}: no such file (got {path}). Fix: correct the path")
    tasks = [task for file in _files(path, field) for task in _read(file, columns, field)]
    by_name: dict[str, TaskResults] = {}
    for task in tasks:
        first = by_name.setdefault(task.name, task)
        if first is not task:
            raise EvaluationError(
                f"{field}: {path}: two files have results of {task.name} (got {first.path} and "
                f"{task.path}). Fix: name one of them"
            )
    return by_name


def _files(path: Path, field: str) -> Sequence[Path]:
    if path.is_file():
        return [path]
    samples = [one.path for one in samples_in(path, field)]
    logs = sorted(path.rglob(f"*{LOG_ENDING}"))
    if samples and logs:
        raise EvaluationError(
            f"{field}: {path}: holds logs of two programs (got {samples[0].name} and "
            f"{logs[0].name}). Fix: name the files of one"
        )
    if not samples and not logs:
        raise EvaluationError(f"{field}: {path}: no results in this folder. Fix: name {POSSIBLE}")
    return samples or logs


def _read(path: Path, columns: Columns, field: str) -> Sequence[TaskResults]:
    if is_inspect_log(path):
        return [read_inspect_log(path, columns)]
    if is_samples(path):
        return [read_samples(path, columns)]
    if not file_kind(path):
        raise EvaluationError(f"{field}: not a file of results (got {path}). Fix: name {POSSIBLE}")
    return read_score_table(path, columns, field)
