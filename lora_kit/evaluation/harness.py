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
from lora_kit.console import say
from lora_kit.data.rows import Row
from lora_kit.errors import EvaluationError
from lora_kit.evaluation.engine.arm import Bench, LoadedArms
from lora_kit.evaluation.engine.journal import Journal
from lora_kit.evaluation.engine.retrieval import Retriever, retrieved
from lora_kit.evaluation.engine.run import evaluate_models, stop_token_ids
from lora_kit.evaluation.engine.work import Work, plan_work
from lora_kit.evaluation.judge import judge
from lora_kit.evaluation.ledger import DRIFT, Entry, read_ledger, write_ledger
from lora_kit.evaluation.reporting.report import ReportFacts, write_report
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict import Verdict
from lora_kit.files import read_json, write_json
from lora_kit.processes import process_state
from lora_kit.recipe import MERGED_ARMS

LEDGER = "ledger.parquet"
VERDICT = "verdict.json"
SUITES = "suites.json"


@dataclass(frozen=True)
class Evaluation:
    """The ledger's entries, what follows from them, and where both lie."""

    verdict: Verdict
    entries: tuple[Entry, ...]
    directory: Path


@dataclass(frozen=True)
class Measurement:
    """What is to be measured.

    Attributes:
        backbone: of the adapter, loaded.
        adapter: its directory, whose weights the verdict names.
        suites: what to evaluate.
        models: arms that are models.
        directory: where the results go.
        facts: title of the report, and what it shows beside what is known here.
        shots: that the arm `fewshot` is shown; 0 where there is none.
        training: rows that shots and retrieved answers are taken from.
        retrieval: whether there is that arm.
        fresh: whether what was measured before is measured again.
    """

    backbone: Backbone
    adapter: Path
    suites: Sequence[Suite]
    models: Sequence[LoadedArms]
    directory: Path
    facts: ReportFacts
    shots: int = 0
    training: Sequence[Row] = ()
    retrieval: bool = False
    fresh: bool = False


def run_suites(wanted: Measurement) -> Evaluation:
    """Evaluate all arms, judge them, and write ledger, verdict and report.

    What an earlier evaluation of the same has left, be it killed or whole, is not measured again.

    Raises:
        LoraKitError: of the first source, item or metric that is wrong; nothing is measured.
    """
    state = process_state()
    work = plan_work(wanted.suites, wanted.backbone, wanted.shots, wanted.training)
    keys = _keys(wanted.models, work)
    if wanted.fresh and state.is_main_process:
        Journal(wanted.directory, state.process_index).discard()
    state.wait_for_everyone()
    journal = Journal(wanted.directory, state.process_index)
    done = {} if wanted.fresh else _done(wanted.directory, journal, list(keys))
    # Nobody writes before all have read.
    state.wait_for_everyone()
    _say_what_is_there(done)
    bench = Bench(
        wanted.backbone.tokenizer, stop_token_ids(wanted.backbone), journal, done, wanted.fresh
    )
    found = evaluate_models(wanted.models, work, bench)
    retriever = Retriever.of(wanted.training) if wanted.retrieval else None
    if retriever is not None:
        found += retrieved(retriever, work)
    entries, used = _assembled(done, found, work, keys)
    verdict = judge(entries, wanted.suites)
    if state.is_main_process:
        _write(wanted, entries, verdict, used)
        journal.discard()
    state.wait_for_everyone()
    return Evaluation(verdict, tuple(entries), wanted.directory)


Done = dict[str, dict[str, Entry]]


def _keys(models: Sequence[LoadedArms], work: Sequence[Work]) -> dict[str, str]:
    """The name of the arm behind every key that results are wanted under."""
    keys = {}
    for one in work:
        for loaded in models:
            for arm in loaded.arms:
                if arm.wants(one):
                    keys[one.key(arm.name, arm.identity)] = arm.name
            if loaded.drifting:
                keys[one.key(DRIFT, loaded.drifting)] = DRIFT
    return keys


def _done(directory: Path, journal: Journal, keys: Sequence[str]) -> Done:
    """What an earlier evaluation has left: in its journal if it was killed, else in its ledger."""
    done: Done = {key: {} for key in keys}
    try:
        stored = read_json(directory / VERDICT, EvaluationError).get("keys", {})
        of = {tuple(where): key for key, where in stored.items() if key in done}
        for entry in read_ledger(directory / LEDGER) if of else []:
            key = of.get((entry.suite, entry.task, entry.arm))
            if key is not None:
                done[key][entry.item] = entry
    except (EvaluationError, AttributeError, TypeError):
        pass  # none, or of another version: everything is measured
    for key, entry in journal.entries(keys):
        done[key][entry.item] = entry
    return done


def _say_what_is_there(done: Done) -> None:
    count = sum(len(entries) for entries in done.values())
    if count:
        say(f"{count:,} results are there already and are used; --fresh measures them again")


def _assembled(
    done: Done, found: Sequence[tuple[str, Entry]], work: Sequence[Work], keys: Mapping[str, str]
) -> tuple[list[Entry], dict[str, list[str]]]:
    """All entries in the order of suites, tasks, arms and items, and what each key is of."""
    by_key: Done = {key: dict(entries) for key, entries in done.items()}
    for key, entry in found:
        by_key.setdefault(key, {})[entry.item] = entry
    order = {(one.suite.name, one.task.spec.name): n for n, one in enumerate(work)}
    arms = [*dict.fromkeys(keys.values())]
    entries = [entry for part in by_key.values() for entry in part.values()]
    entries.sort(
        key=lambda e: (
            order[e.suite, e.task],
            arms.index(e.arm) if e.arm in arms else len(arms),
            e.item,
        )
    )
    used = {
        key: [first.suite, first.task, first.arm]
        for key, part in by_key.items()
        if (first := next(iter(part.values()), None))
    }
    return entries, used


def _write(
    wanted: Measurement, entries: Sequence[Entry], verdict: Verdict, keys: Mapping[str, list[str]]
) -> None:
    directory, backbone = wanted.directory, wanted.backbone
    write_ledger(directory / LEDGER, entries)
    write_json(directory / SUITES, [suite.model_dump(mode="json") for suite in wanted.suites])
    arms = [arm for model in wanted.models for arm in model.arms]
    lineage = {
        "backbone": backbone.fingerprint.digest,
        "adapter": adapter_sha256(wanted.adapter),
        "suite_digests": {suite.name: suite.digest for suite in wanted.suites},
        # So that nobody takes a merge made later for the one that was measured.
        "merged_models": {arm.name: arm.identity for arm in arms if arm.name in MERGED_ARMS},
        "keys": keys,
    }
    write_json(directory / VERDICT, verdict.to_dict() | lineage)
    described = {
        "Backbone": backbone.spec.model,
        "Quantization": backbone.spec.quantization,
        "Computed in": str(backbone.spec.dtype),
        "Fingerprint": backbone.fingerprint.digest[:16],
    }
    facts = ReportFacts(wanted.facts.title, described | dict(wanted.facts.facts))
    write_report(directory, verdict, entries, facts)


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
    if not _same(judged, {name: stored.get(name) for name in judged}):
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
