"""Evaluation as one call: arms on suites, and all that is left on disk of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.adapters import adapter_sha256
from lora_kit.backbone import Backbone
from lora_kit.errors import EvaluationError
from lora_kit.evaluation.engine import evaluate_arms
from lora_kit.evaluation.ledger import Entry, read_ledger, write_ledger
from lora_kit.evaluation.report import ReportFacts, write_report
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict import Verdict, judge
from lora_kit.files import read_json, write_json
from lora_kit.processes import process_state

LEDGER = "ledger.parquet"
VERDICT = "verdict.json"
SUITES = "suites.json"


@dataclass(frozen=True)
class Evaluation:
    """The ledger's entries, what follows from them, and where both lie."""

    verdict: Verdict
    entries: tuple[Entry, ...]
    directory: Path


def run_suites(
    backbone: Backbone,
    model: Any,
    suites: Sequence[Suite],
    arms: Sequence[str],
    directory: Path,
    title: str,
    facts: Mapping[str, str],
    adapter: Path,
) -> Evaluation:
    """Evaluate base and adapter, judge them, and write ledger, verdict and report.

    Args:
        backbone: loaded.
        model: the backbone with the adapter attached.
        suites: what to evaluate.
        arms: `base` and `adapter`.
        directory: where the results go.
        title: of the report.
        facts: shown in the report beside what is known here.
        adapter: its directory, whose weights the verdict names.
    """
    entries = evaluate_arms(backbone, model, suites, arms)
    verdict = judge(entries, suites)
    if process_state().is_main_process:
        write_ledger(directory / LEDGER, entries)
        write_json(directory / SUITES, [suite.model_dump(mode="json") for suite in suites])
        lineage = {
            "backbone": backbone.fingerprint.digest,
            "adapter": adapter_sha256(adapter),
            "suite_digests": {suite.name: suite.digest for suite in suites},
        }
        write_json(directory / VERDICT, verdict.to_dict() | lineage)
        described = {
            "Backbone": backbone.spec.model,
            "Quantization": backbone.spec.quantization,
            "Computed in": str(backbone.spec.dtype),
            "Fingerprint": backbone.fingerprint.digest[:16],
        }
        write_report(directory, verdict, entries, ReportFacts(title, described | dict(facts)))
    process_state().wait_for_everyone()
    return Evaluation(verdict, tuple(entries), directory)


def read_verdict(directory: Path) -> dict[str, Any]:
    """The verdict that lies in an evaluation directory, as JSON.

    Raises:
        EvaluationError: if there is none.
    """
    path = directory / VERDICT
    if not path.is_file():
        raise EvaluationError(f"{path}: no verdict; evaluate the adapter first")
    value = read_json(path, EvaluationError)
    if not {"decision", "suites", "backbone", "adapter", "suite_digests"} <= set(value):
        raise EvaluationError(f"{path}: not a verdict of this version; evaluate the adapter again")
    return value


def check_verdict(directory: Path) -> None:
    """Judge the ledger anew and compare with the verdict on disk.

    Raises:
        EvaluationError: if the verdict does not follow from the ledger.
    """
    stored = read_verdict(directory)
    try:
        suites = [Suite.model_validate(s) for s in json.loads((directory / SUITES).read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise EvaluationError(f"{directory / SUITES}: cannot be read: {error}") from error
    if stored["suite_digests"] != {suite.name: suite.digest for suite in suites}:
        raise EvaluationError(f"{directory / SUITES}: not the suites that the verdict names")
    judged = judge(read_ledger(directory / LEDGER), suites).to_dict()
    if not _same(judged, {name: stored[name] for name in judged}):
        raise EvaluationError(
            f"{directory / VERDICT}: the verdict does not follow from the ledger beside it"
        )


def _same(a: Any, b: Any) -> bool:
    """Equal, but for the last digits of numbers, which another machine may round otherwise."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
    return bool(a == b)
