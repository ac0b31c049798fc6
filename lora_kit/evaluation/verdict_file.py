"""Verdict file: read with its types, and judged again from the ledger beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lora_kit.evaluation.assembly import LEDGER, VERDICT
from lora_kit.evaluation.comparisons import texts_to_judge
from lora_kit.evaluation.judge import judge
from lora_kit.evaluation.ledger import Ledger
from lora_kit.evaluation.stopping import LookPlan, require_path
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict import Verdict
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import read_json
from lora_kit.runtime.hashes import file_sha256

SUITES = "suites.json"


@dataclass(frozen=True)
class Lineage:
    """Digests of everything that a verdict was measured on.

    Attributes:
        backbone: digest of the backbone's fingerprint.
        adapter: sha256 of the adapter's weights.
        suite_digests: digest of each suite.
        merged_models: digest of each merged model and each file that was an arm, should it be
            written again later.
    """

    backbone: str
    adapter: str
    suite_digests: Mapping[str, str]
    merged_models: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedVerdict:
    """Verdict on disk, with its lineage."""

    verdict: Verdict
    lineage: Lineage


def read_verdict(directory: Path) -> RecordedVerdict:
    """Read the verdict of an evaluation directory.

    Raises:
        EvaluationError: if the file is missing or not a verdict of this version.
    """
    return _parse(directory / VERDICT, _read_values(directory / VERDICT))


def read_suites(directory: Path) -> list[Suite]:
    """Read the suites of an evaluation directory.

    Raises:
        EvaluationError: if the file is missing or does not hold suites.
    """
    path = directory / SUITES
    try:
        return [Suite.model_validate(one) for one in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise EvaluationError(
            f"{path}: cannot be read as suites (got {error}). Fix: evaluate again"
        ) from error


def check_verdict(directory: Path) -> RecordedVerdict:
    """Judge the ledger again, compare the result with the verdict on disk, and return that.

    Raises:
        EvaluationError: if the verdict does not follow from the ledger, or a task stopped too soon
            or was asked on after its end.
    """
    values = _read_values(directory / VERDICT)
    recorded = _parse(directory / VERDICT, values)
    suites = read_suites(directory)
    if recorded.lineage.suite_digests != {suite.name: suite.digest for suite in suites}:
        raise EvaluationError(
            f"{directory / SUITES}: not the suites that the verdict names (got other digests). "
            "Fix: restore the file, or evaluate again"
        )
    ledger = Ledger(directory / LEDGER)
    plan = _plan(directory / LEDGER, ledger)
    judged = judge(ledger, suites, plan).to_dict()
    if not _same(judged, {name: values[name] for name in judged if name in values}):
        raise EvaluationError(
            f"{directory / VERDICT}: the verdict does not follow from the ledger beside it (got "
            "other values when judged again). Fix: restore both files, or evaluate again"
        )
    for suite in suites:
        for task in suite.tasks:
            arms = ledger.arms(suite.name, task.name, texts_to_judge(task))
            require_path(arms, suite, task, plan)
    return recorded


def _plan(path: Path, ledger: Ledger) -> LookPlan:
    try:
        return LookPlan.from_dict(ledger.plan)
    except ValidationError as error:
        raise EvaluationError(
            f"{path}: does not say which items were to be asked (got {error.errors()[0]['msg']}). "
            "Fix: restore the file, or evaluate again"
        ) from error


def evidence_digests(directory: Path) -> dict[str, str]:
    """Return the sha256 of the files that `check_verdict` reads, by name."""
    return {name: file_sha256(directory / name) for name in (LEDGER, SUITES, VERDICT)}


def _read_values(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise EvaluationError(
            f"{path}: no verdict (got no such file). Fix: evaluate the adapter first"
        )
    return read_json(path, EvaluationError)


def _parse(path: Path, values: Mapping[str, Any]) -> RecordedVerdict:
    try:
        lineage = TypeAdapter(Lineage).validate_python(values)
        return RecordedVerdict(Verdict.from_dict(values), lineage)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise EvaluationError(
            f"{path}: not a verdict of this version (got {place}: {first['msg']}). Fix: evaluate "
            "the adapter again"
        ) from error


def _same(a: Any, b: Any) -> bool:
    """Compare judged values with recorded ones.

    Numbers have a tolerance, since machines may round differently. Fields that an earlier version
    did not record have to be empty.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        if not b.keys() <= a.keys():
            return False
        return all(_same(value, b[key]) if key in b else not value for key, value in a.items())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
    return bool(a == b)
