"""Evaluation as one call: arms on suites, and all that is left on disk of it."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lora_kit.adapter.attach import adapter_sha256
from lora_kit.backbone.load import Backbone
from lora_kit.data.rows import Row
from lora_kit.evaluation.assembly import (
    LEDGER,
    VERDICT,
    Part,
    assembled,
    keep_stored,
    parts_of,
    refuse_separate_directories,
    stored_items,
    with_part,
)
from lora_kit.evaluation.engine.arm import EvaluationContext, LoadedArms
from lora_kit.evaluation.engine.journal import Journal, Journals
from lora_kit.evaluation.engine.retrieval import Retriever, retrieved
from lora_kit.evaluation.engine.run import evaluate_models
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.judge import judge
from lora_kit.evaluation.ledger import Entry, Ledger, read_ledger, write_ledger
from lora_kit.evaluation.reporting.report import ReportFacts, write_report
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict import Verdict
from lora_kit.modeling.generation import stop_token_ids
from lora_kit.recipe.sections import MERGED_ARMS
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import read_json, whole_file, write_json
from lora_kit.runtime.processes import made_by_first, process_state, require_agreement

SUITES = "suites.json"


@dataclass(frozen=True)
class Evaluation:
    """What follows from an evaluation's ledger, and where both lie."""

    verdict: Verdict
    directory: Path

    def read_entries(self) -> list[Entry]:
        """The ledger's entries, all in memory."""
        return read_ledger(self.directory / LEDGER)


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
        training: rows that retrieved answers are taken from.
        retrieval: whether there is that arm.
        fresh: whether what was measured before is measured again.
    """

    backbone: Backbone
    adapter: Path
    suites: Sequence[Suite]
    models: Sequence[LoadedArms]
    directory: Path
    facts: ReportFacts
    training: Sequence[Row] = ()
    retrieval: bool = False
    no_cache: bool = False


def run_evaluation(wanted: Measurement, work: Sequence[Work]) -> Evaluation:
    """Evaluate all arms, judge them, and write ledger, verdict and report.

    Results that an earlier evaluation of the same has left, be it killed or complete, are reused.

    Args:
        wanted: what to measure, and where the results go.
        work: the items of the suites, or some of them, in batches.

    Raises:
        LoraKitError: if processes differ in what they were given, or an arm cannot be evaluated.
    """
    state = process_state()
    parts = parts_of(wanted.models, work)
    require_agreement(
        {
            "files of the adapter": adapter_sha256(wanted.adapter),
            "items, settings or weights": sha256(
                repr([(part.key, part.items) for part in parts]).encode()
            ).hexdigest(),
        }
    )
    if wanted.no_cache and state.is_main_process:
        Journal(wanted.directory, state.process_index).discard()
    state.wait_for_everyone()
    journal = Journal(wanted.directory, state.process_index)
    # Each cuts off a broken end of its own first; read by one, what is done is the same for all.
    state.wait_for_everyone()
    measured, stored = made_by_first(lambda: _results(wanted, journal, parts))
    done = {key: items | stored.get(key, set()) for key, items in measured.items()}
    _say_what_is_there(done)
    journal.open()
    state.wait_for_everyone()
    made_by_first(lambda: _begin(wanted, parts, stored, measured))
    bench = EvaluationContext(
        wanted.backbone.tokenizer, stop_token_ids(wanted.backbone), journal, done, wanted.no_cache
    )
    evaluate_models(wanted.models, work, bench)
    state.wait_for_everyone()
    verdict = made_by_first(lambda: _conclude(wanted, work, parts, journal))
    return Evaluation(verdict, wanted.directory)


Ids = Mapping[str, Collection[str]]
Sets = dict[str, set[str]]


def _results(wanted: Measurement, journal: Journal, parts: Sequence[Part]) -> tuple[Sets, Sets]:
    """Items with a result by key: in the journals, and in an earlier ledger."""
    measured = journal.done([part.key for part in parts])
    return measured, {} if wanted.no_cache else stored_items(wanted.directory, parts)


def _say_what_is_there(done: Ids) -> None:
    count = sum(len(items) for items in done.values())
    if count:
        say(f"{count:,} results are there already and are used; --no-cache measures them again")


def _begin(wanted: Measurement, parts: Sequence[Part], stored: Ids, measured: Ids) -> None:
    """Refuse what cannot end well, and take over from an earlier ledger what no journal has."""
    refuse_separate_directories(wanted.directory, process_state().num_processes)
    kept = {key: set(items).difference(measured[key]) for key, items in stored.items()}
    keep_stored(wanted.directory, parts, kept)


def _conclude(
    wanted: Measurement, work: Sequence[Work], parts: Sequence[Part], journal: Journal
) -> Verdict:
    """From the journals of all processes to ledger, verdict and report."""
    directory = wanted.directory
    retriever = Retriever.of(wanted.training) if wanted.retrieval else None
    if retriever is not None:
        for key, records in retrieved(retriever, work):
            journal.append(records)
            entries = [entry for _, entry in records]
            of, ids = entries[0], tuple(entry.item for entry in entries)
            parts = with_part(parts, Part(key, of.suite, of.task, of.arm, ids))
    with (
        closing(Journals(directory, [part.key for part in parts])) as journals,
        whole_file(directory / LEDGER) as temporary,
    ):
        write_ledger(temporary, assembled(directory, parts, journals))
        verdict = judge(Ledger(temporary), wanted.suites)
        # It is of the ledger that is replaced now.
        (directory / VERDICT).unlink(missing_ok=True)
    _write(wanted, verdict, {part.key: [part.suite, part.task, part.arm] for part in parts})
    journal.discard()
    return verdict


def _write(wanted: Measurement, verdict: Verdict, keys: Mapping[str, list[str]]) -> None:
    directory, backbone = wanted.directory, wanted.backbone
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
    write_report(directory, verdict, Ledger(directory / LEDGER), facts)


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
    judged = judge(Ledger(directory / LEDGER), suites).to_dict()
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
