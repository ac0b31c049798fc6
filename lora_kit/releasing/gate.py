"""Release gate: a run may be released if it passed and its merged files are those measured."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_kit.adapter.saved import adapter_sha256
from lora_kit.evaluation.arm_names import gguf_arm
from lora_kit.evaluation.assembly import VERDICT
from lora_kit.evaluation.verdict import Verdict
from lora_kit.evaluation.verdict_file import RecordedVerdict, check_verdict, evidence_digests
from lora_kit.merging.record import MERGE_RECORD, merged_identity, recorded_merge_failures
from lora_kit.recipe.identity import training_digest
from lora_kit.recipe.sections import MERGED_ARMS
from lora_kit.releasing.acceptance import Acceptance
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import VERDICT_STATUS, ReleaseError
from lora_kit.runtime.files import read_json
from lora_kit.runtime.hashes import changed_files, file_sha256
from lora_kit.statistics.decisions import Decision, combine_decisions

# Exit status if a stage has not run yet.
MISSING_STAGE = 2
# Keys of the merge record that the gate and the card need.
MERGE_KEYS = {"verification", "backbone", "adapter", "files", "into", "dtype", "compared_on"}


@dataclass(frozen=True)
class Clearance:
    """Run that passed the gate, with the records that a release is built from.

    Attributes:
        recorded: the verdict, which follows from its ledger.
        evidence: sha256 of the files that it was checked on, by name.
        merge: content of the merge record.
        merged: directory of the merged model to release.
        decision: decision for the adapter and the merged model together.
        acceptance: acceptance of the verdict if `decision` is INCONCLUSIVE.
        formats: exported files to release beside it, by the name of the arm that each was.
    """

    recorded: RecordedVerdict
    evidence: Mapping[str, str]
    merge: dict[str, Any]
    merged: Path
    decision: Decision
    acceptance: Acceptance | None
    formats: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """Reason why a run is not released, with its exit status."""

    text: str
    status: int


def clear_for_release(
    run: RunDirectory, acceptance: Acceptance | None = None, files: Sequence[Path] = ()
) -> Clearance:
    """Check that a run may be released.

    Args:
        run: a run that was evaluated and merged.
        acceptance: acceptance of an INCONCLUSIVE verdict; ignored if the verdict is PASS.
        files: exported files to release beside the merged model.

    Raises:
        ReleaseError: with every reason against the release, and the exit status of the worst.
    """
    recorded = check_verdict(run.evaluation)
    evidence = evidence_digests(run.evaluation)
    verdict = recorded.verdict
    formats = {gguf_arm(file): file for file in files}
    judged = [arm for arm in formats if arm in verdict.files]
    decision, undecided, reasons = release_decision(verdict, str(run.root), judged)
    reasons += _unmeasured_files(run, recorded, formats)
    if decision == "INCONCLUSIVE" and acceptance:
        reasons = [reason for reason in reasons if reason.status != VERDICT_STATUS["INCONCLUSIVE"]]
    merge: dict[str, Any] = {}
    merged = run.merged_as(verdict.ships or MERGED_ARMS[0])
    record = merged / MERGE_RECORD
    if record.is_file():
        merge = read_json(record, ReleaseError)
        reasons += _broken_merge(run, merged, recorded, merge)
    else:
        text = f"{merged}: not merged yet. Fix: run `lora-kit merge {run.root}`"
        reasons.append(Refusal(text, MISSING_STAGE))
    reasons += _broken_lineage(run, recorded)
    if reasons or decision is None:
        lines = "".join(f"\n  {reason.text}" for reason in reasons)
        worst = max((reason.status for reason in reasons), key=[MISSING_STAGE, 4, 3].index)
        raise ReleaseError(
            f"{run.root}: not released, the verdict is {decision or 'incomplete'}{lines}",
            status=worst,
        )
    if decision == "PASS" or acceptance is None:
        return Clearance(recorded, evidence, merge, merged, decision, None, formats)
    accepted = acceptance.model_copy(update={"tasks": tuple(undecided)})
    return Clearance(recorded, evidence, merge, merged, decision, accepted, formats)


def _unmeasured_files(
    run: RunDirectory, recorded: RecordedVerdict, formats: Mapping[str, Path]
) -> Iterator[Refusal]:
    """Yield files that were not judged, or are not those that were."""
    for arm, file in formats.items():
        again = f"Fix: run `lora-kit evaluate {run.root} --arm gguf={file}`"
        if arm not in recorded.verdict.files:
            yield Refusal(f"{file}: was not judged. {again}", MISSING_STAGE)
        elif recorded.lineage.merged_models.get(arm) != file_sha256(file):
            yield Refusal(
                f"{file}: is not the file that was judged under this name. {again}",
                VERDICT_STATUS["FAIL"],
            )


def release_decision(
    verdict: Verdict, root: str, files: Collection[str] = ()
) -> tuple[Decision | None, list[str], list[Refusal]]:
    """Combine the decisions for the adapter, the merged model and the files over all tasks.

    Args:
        verdict: the verdict of an evaluation.
        root: run directory, for messages.
        files: arms of the files that are released.

    Returns:
        Decision (`None` if the merged model was not evaluated on every task), undecided tasks, and
        one refusal for each task that did not pass.
    """
    named = [(f"{suite.suite}/{task.task}", task) for suite, task in verdict.tasks]
    decisions: list[tuple[str, Decision]] = [
        (arm, decision)
        for name, task in named
        for arm, decision in ((name, task.decision), (f"{name}, merged", task.merged))
        if decision is not None
    ]
    decisions += [
        (f"{name}, {file.arm}", file.decision)
        for name, task in named
        for file in task.files
        if file.arm in files
    ]
    undecided = [arm for arm, decision in decisions if decision == "INCONCLUSIVE"]
    reasons = [
        Refusal(f"{arm}: {decision}", VERDICT_STATUS[decision])
        for arm, decision in decisions
        if decision != "PASS"
    ]
    if unmeasured := [name for name, task in named if task.merged is None]:
        reasons.append(
            Refusal(
                f"{root}: the merged model was not evaluated on {', '.join(unmeasured)}. Fix: run "
                f"`lora-kit evaluate {root} --arm merged`",
                MISSING_STAGE,
            )
        )
        return None, undecided, reasons
    return combine_decisions([decision for _, decision in decisions]), undecided, reasons


def verdict_matches_merge(recorded: RecordedVerdict, merge: Mapping[str, Any]) -> bool:
    """Return True if the verdict measured the merged model that is to be released."""
    ships = recorded.verdict.ships
    measured = recorded.lineage.merged_models.get(ships) if ships else None
    return measured == merged_identity(merge["files"])


def _broken_merge(
    run: RunDirectory, merged: Path, recorded: RecordedVerdict, merge: Mapping[str, Any]
) -> Iterator[Refusal]:
    """Yield reasons why the merged files are not those of this run, as they were verified."""
    record, again = merged / MERGE_RECORD, f"Fix: run `lora-kit merge {run.root}` again"
    if not set(merge) >= MERGE_KEYS:
        missing = ", ".join(sorted(MERGE_KEYS - set(merge)))
        text = f"{record}: written by another version (got no {missing}). {again}"
        yield Refusal(text, MISSING_STAGE)
        return
    failed = VERDICT_STATUS["FAIL"]
    for problem in recorded_merge_failures(merge, run.load_recipe().backbone.quantization):
        text = f"{record}: the merged files differ from what was measured: {problem}. {again}"
        yield Refusal(text, failed)
    if merge["backbone"] != recorded.lineage.backbone:
        text = f"{record}: merged on another backbone than the verdict's. {again}"
        yield Refusal(text, failed)
    if merge["adapter"] != adapter_sha256(run.adapter):
        yield Refusal(f"{record}: the merged files come from another adapter. {again}", failed)
    if recorded.verdict.merged is not None and not verdict_matches_merge(recorded, merge):
        text = f"another merge was evaluated. Fix: run `lora-kit evaluate {run.root} --arm merged`"
        yield Refusal(f"{run.evaluation / VERDICT}: {text}", failed)
    if changed := changed_files(merged, merge["files"]):
        text = f"{merged}: files changed since verification (got {', '.join(changed)}). {again}"
        yield Refusal(text, failed)
    new = sorted({path.name for path in merged.iterdir()} - {*merge["files"], MERGE_RECORD})
    if new:
        text = f"{merged}: holds files that were not verified (got {', '.join(new)}). Fix: "
        yield Refusal(f"{text}remove them", failed)


def _broken_lineage(run: RunDirectory, recorded: RecordedVerdict) -> Iterator[Refusal]:
    """Yield reasons why recipe, adapter and verdict do not belong to one run."""
    failed, file = VERDICT_STATUS["FAIL"], run.evaluation / VERDICT
    if recorded.lineage.adapter != adapter_sha256(run.adapter):
        again = f"Fix: run `lora-kit evaluate {run.root}`"
        yield Refusal(f"{file}: the verdict is for another adapter. {again}", failed)
    record = read_json(run.record, ReleaseError)
    trained = record.get("recipe_sha256")
    if trained is None:
        text = f"{run.record}: recipe_sha256 is missing, as in earlier versions. Fix: train again"
        yield Refusal(text, MISSING_STAGE)
    elif trained != training_digest(run.recipe):
        text = f"{run.recipe}: differs from the recipe that was trained. Fix: revert it"
        yield Refusal(text, failed)
    if recorded.lineage.suite_digests != record.get("suites"):
        text = f"{file}: the suites differ from those fixed before training. Fix: restore them and "
        yield Refusal(f"{text}run `lora-kit evaluate {run.root}`", failed)
