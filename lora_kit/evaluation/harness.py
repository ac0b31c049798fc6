"""Evaluation of arms on suites: from work to ledger, verdict and report on disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from lora_kit.adapter.saved import adapter_sha256
from lora_kit.backbone.fingerprint import Fingerprint
from lora_kit.backbone.load import Backbone
from lora_kit.data.rows import Row
from lora_kit.evaluation.agreement import AGREEMENT, Agreement, OtherEngine, measure_agreement
from lora_kit.evaluation.arm_names import is_shipped
from lora_kit.evaluation.assembly import (
    LEDGER,
    VERDICT,
    ResultPart,
    asked_parts,
    assembled_entries,
    copy_stored,
    insert_part,
    refuse_separate_directories,
    result_parts,
    stored_items,
)
from lora_kit.evaluation.engine.arm import EvaluationContext, LoadedArms
from lora_kit.evaluation.engine.journal import Journal, Journals
from lora_kit.evaluation.engine.retrieval import Retriever, retrieval_entries
from lora_kit.evaluation.engine.run import TaskPath, evaluate_models
from lora_kit.evaluation.engine.work import Work, look_plan
from lora_kit.evaluation.journal_judge import JournalJudge
from lora_kit.evaluation.judge import judge
from lora_kit.evaluation.ledger import Entry, Ledger, read_ledger, write_ledger
from lora_kit.evaluation.llm_judge.preferences import JudgedTask, Preferences, judge_answers
from lora_kit.evaluation.reporting.report import ReportFacts, write_report
from lora_kit.evaluation.stopping import FIXED, LookPlan, Stopping
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict import Verdict
from lora_kit.evaluation.verdict_file import SUITES, Lineage
from lora_kit.modeling.generation import stop_token_ids
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.console import say
from lora_kit.runtime.files import whole_file, write_json
from lora_kit.runtime.processes import broadcast_from_main, process_state, require_agreement

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Evaluation:
    """Verdict of an evaluation, and the directory that holds it with the ledger.

    Attributes:
        agreement: agreement of the engines that answered the same items.
    """

    verdict: Verdict
    directory: Path
    agreement: Sequence[Agreement] = ()

    def read_entries(self) -> list[Entry]:
        """Read all entries of the ledger into memory."""
        return read_ledger(self.directory / LEDGER)


@dataclass(frozen=True)
class EvaluatedBackbone:
    """Parts of a backbone that an evaluation needs to its end: all but the weights.

    Attributes:
        spec: backbone section with revision, dtype and attention resolved.
        fingerprint: identity of weights, configuration, tokenizer and storage.
        tokenizer: tokenizer with a padding token.
        stop_token_ids: tokens on which generation ends.
    """

    spec: BackboneSpec
    fingerprint: Fingerprint
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: tuple[int, ...]

    @classmethod
    def of(cls, backbone: Backbone) -> EvaluatedBackbone:
        """Return these parts of a loaded backbone, whose model may be freed afterwards."""
        stops = stop_token_ids(backbone)
        return cls(backbone.spec, backbone.fingerprint, backbone.tokenizer, stops)


@dataclass(frozen=True)
class EvaluationPlan:
    """Inputs of an evaluation.

    Attributes:
        backbone: backbone of the adapter.
        adapter: adapter directory; the verdict records the digest of its weights.
        suites: suites to evaluate.
        models: arms that are models, in the order of evaluation.
        directory: output directory.
        facts: title and additional facts of the report.
        training: training rows from which the arm `retrieval` takes its answers.
        retrieval: if true, evaluate that arm.
        no_cache: if true, ignore earlier results and measure again.
        stopping: cut of the items into looks, with which the work was planned.
        other: evaluation of the same adapter by another engine, to compare with.
        judged: judge tasks among the work.
    """

    backbone: EvaluatedBackbone
    adapter: Path
    suites: Sequence[Suite]
    models: Sequence[LoadedArms]
    directory: Path
    facts: ReportFacts
    training: Sequence[Row] = ()
    retrieval: bool = False
    no_cache: bool = False
    stopping: Stopping = FIXED
    other: OtherEngine | None = None
    judged: Sequence[JudgedTask] = ()


def run_evaluation(plan: EvaluationPlan, work: Sequence[Work]) -> Evaluation:
    """Evaluate all arms, judge them, and write ledger, verdict and report.

    Results of an earlier evaluation in the same directory, interrupted or complete, are reused.

    Args:
        plan: inputs of the evaluation.
        work: items of the suites, or a subset, in batches.

    Raises:
        LoraKitError: if processes have different inputs, or an arm cannot be evaluated.
    """
    judged = {one.work.name for one in plan.judged}
    assert judged == {one.name for one in work if one.task.spec.judge is not None}
    state = process_state()
    parts = result_parts(plan.models, work)
    require_agreement(
        {
            "files of the adapter": adapter_sha256(plan.adapter),
            "items, settings or weights": sha256(
                repr([(part.key, part.items) for part in parts]).encode()
            ).hexdigest(),
        }
    )
    if plan.no_cache and state.is_main_process:
        Journal(plan.directory, state.process_index).discard()
    state.wait_for_everyone()
    journal = Journal(plan.directory, state.process_index)
    # Every process has truncated a broken end of its journal by now. The main process reads all
    # journals, so that all processes skip the same items.
    state.wait_for_everyone()
    measured, stored = broadcast_from_main(lambda: _earlier_results(plan, journal, parts))
    done = {key: items | stored.get(key, set()) for key, items in measured.items()}
    count = sum(len(items) for items in done.values())
    if count:
        say(f"reusing {count:,} results of an earlier evaluation; set --no-cache to measure again")
    journal.open()
    state.wait_for_everyone()
    broadcast_from_main(lambda: _begin(plan, parts, stored, measured))
    context = EvaluationContext(
        plan.backbone.tokenizer, plan.backbone.stop_token_ids, journal, done, plan.no_cache
    )
    looks = look_plan(work, plan.stopping)
    paths = _evaluate_in_looks(plan, work, parts, context, looks)
    state.wait_for_everyone()
    asked = asked_parts(parts, work, paths)
    preferences = judge_answers(plan.directory, plan.judged, asked, plan.no_cache)
    plan = replace(plan, suites=preferences.calibrated(plan.suites))
    verdict, agreement = broadcast_from_main(
        lambda: _conclude(plan, work, asked, journal, looks, paths, preferences)
    )
    return Evaluation(verdict, plan.directory, agreement)


def _evaluate_in_looks(
    plan: EvaluationPlan,
    work: Sequence[Work],
    parts: Sequence[ResultPart],
    context: EvaluationContext,
    looks: LookPlan,
) -> dict[str, TaskPath]:
    """Evaluate all arms; between looks, the main process judges what the journals hold."""
    if all(one.looks == 1 for one in work):
        return evaluate_models(plan.models, work, context)
    keys = [p.key for p in parts if p.arm in ("base", "adapter") or is_shipped(p.arm)]
    with ExitStack() as stack:
        journals = None
        if process_state().is_main_process:
            journals = stack.enter_context(closing(Journals(plan.directory, keys)))
        judge = JournalJudge(journals, parts, plan.suites, looks)
        return evaluate_models(plan.models, work, context, judge)


# Item ids by key.
Ids = Mapping[str, Collection[str]]
IdSets = dict[str, set[str]]


def _earlier_results(
    plan: EvaluationPlan, journal: Journal, parts: Sequence[ResultPart]
) -> tuple[IdSets, IdSets]:
    """Return the ids of items that have results: in the journals, and in an earlier ledger."""
    measured = journal.done([part.key for part in parts])
    return measured, {} if plan.no_cache else stored_items(plan.directory, parts)


def _begin(plan: EvaluationPlan, parts: Sequence[ResultPart], stored: Ids, measured: Ids) -> None:
    """Check the output directory; copy results of an earlier ledger that no journal has."""
    refuse_separate_directories(plan.directory, process_state().num_processes)
    reused = {key: set(items).difference(measured[key]) for key, items in stored.items()}
    copy_stored(plan.directory, parts, reused)


def _conclude(
    plan: EvaluationPlan,
    work: Sequence[Work],
    parts: Sequence[ResultPart],
    journal: Journal,
    looks: LookPlan,
    paths: Mapping[str, TaskPath],
    preferences: Preferences,
) -> tuple[Verdict, list[Agreement]]:
    """Write ledger, verdict and report from the journals of all processes."""
    directory = plan.directory
    retriever = Retriever.of(plan.training) if plan.retrieval else None
    if retriever is not None:
        for key, records in retrieval_entries(retriever, work):
            journal.append(records)
            first = records[0][1]
            last = paths[f"{first.suite}/{first.task}"].last_look(first.arm)
            ids = tuple(entry.item for _, entry in records if entry.look <= last)
            part = ResultPart(key, first.suite, first.task, first.arm, ids)
            parts = insert_part(parts, part)
    with (
        closing(Journals(directory, [part.key for part in parts])) as journals,
        whole_file(directory / LEDGER) as temporary,
    ):
        entries = preferences.score(assembled_entries(directory, parts, journals))
        write_ledger(temporary, entries, looks.to_dict())
        verdict = judge(Ledger(temporary), plan.suites, looks)
        # The old verdict belongs to the old ledger, which is replaced at the end of this block.
        (directory / VERDICT).unlink(missing_ok=True)
    keys = {part.key: [part.suite, part.task, part.arm] for part in parts}
    _write_verdict(plan, verdict, keys)
    agreement = measure_agreement(directory, plan.suites, plan.other)
    write_json(directory / AGREEMENT, [asdict(one) for one in agreement])
    _write_report(plan, verdict, agreement)
    journal.discard()
    return verdict, agreement


def _write_verdict(plan: EvaluationPlan, verdict: Verdict, keys: Mapping[str, list[str]]) -> None:
    directory, backbone = plan.directory, plan.backbone
    write_json(directory / SUITES, [suite.model_dump(mode="json") for suite in plan.suites])
    arms = [arm for model in plan.models for arm in model.arms]
    lineage = Lineage(
        backbone.fingerprint.digest,
        adapter_sha256(plan.adapter),
        {suite.name: suite.digest for suite in plan.suites},
        {arm.name: arm.files or arm.identity for arm in arms if is_shipped(arm.name)},
    )
    write_json(directory / VERDICT, {**verdict.to_dict(), **asdict(lineage), "keys": keys})


def _write_report(plan: EvaluationPlan, verdict: Verdict, agreement: Sequence[Agreement]) -> None:
    directory, backbone = plan.directory, plan.backbone
    backbone_facts = {
        "Backbone": backbone.spec.model,
        "Quantization": backbone.spec.quantization,
        "Computed in": str(backbone.spec.dtype),
        "Fingerprint": backbone.fingerprint.digest[:16],
    }
    facts = ReportFacts(plan.facts.title, backbone_facts | dict(plan.facts.facts))
    write_report(directory, verdict, Ledger(directory / LEDGER), facts, agreement)
