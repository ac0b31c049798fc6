"""What may be released: a run that passed, whose merged files are what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.adapter.attach import adapter_sha256
from lora_kit.evaluation.harness import check_verdict, read_verdict
from lora_kit.merging.record import MERGE_RECORD, merged_identity
from lora_kit.recipe.identity import training_digest
from lora_kit.recipe.sections import MERGED_ARMS
from lora_kit.releasing.acceptance import Acceptance
from lora_kit.releasing.figures import against_passing
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import VERDICT_STATUS, ReleaseError
from lora_kit.runtime.files import read_json
from lora_kit.runtime.hashes import file_sha256
from lora_kit.statistics.decisions import Decision, combined

MISSING_STAGE = 2
# What the gate compares, and what the card says of the merge.
MERGE_KEYS = {"verification", "backbone", "adapter", "files", "into", "dtype", "compared_on"}


@dataclass(frozen=True)
class Clearance:
    """What the gate saw.

    Attributes:
        merged: directory of the merged model that ships.
        decision: of the adapter and that model together.
        acceptance: where the decision is INCONCLUSIVE.
    """

    verdict: dict[str, Any]
    merge: dict[str, Any]
    merged: Path
    decision: Decision
    acceptance: Acceptance | None


@dataclass(frozen=True)
class Reason:
    """Why a run is not released, and the exit status that says so."""

    text: str
    status: int


def clear(run: RunDirectory, acceptance: Acceptance | None = None) -> Clearance:
    """Let a run pass, or say why not.

    Args:
        run: that was evaluated and merged.
        acceptance: of a verdict that is INCONCLUSIVE; one that passed needs none.

    Raises:
        ReleaseError: with every reason, and the exit status of the worst.
    """
    verdict = read_verdict(run.evaluation)
    check_verdict(run.evaluation)
    decision, undecided, reasons = judged(verdict, str(run.root))
    if decision == "INCONCLUSIVE" and acceptance:
        reasons = [reason for reason in reasons if reason.status != VERDICT_STATUS["INCONCLUSIVE"]]
    merge: dict[str, Any] = {}
    merged = run.merged_as(verdict.get("ships") or MERGED_ARMS[0])
    record = merged / MERGE_RECORD
    if record.is_file():
        merge = read_json(record, ReleaseError)
        reasons += _broken_merge(run, merged, verdict, merge)
    else:
        reasons.append(Reason(f"not merged yet; run `lora-kit merge {run.root}`", MISSING_STAGE))
    reasons += _broken_lineage(run, verdict)
    if reasons or decision is None:
        lines = "".join(f"\n  {reason.text}" for reason in reasons)
        worst = max((reason.status for reason in reasons), key=[MISSING_STAGE, 4, 3].index)
        raise ReleaseError(
            f"{run.root}: not released, the verdict is {decision or 'not whole'}{lines}",
            status=worst,
        )
    if decision == "PASS" or acceptance is None:
        return Clearance(verdict, merge, merged, decision, None)
    named = acceptance.model_copy(update={"tasks": tuple(undecided)})
    return Clearance(verdict, merge, merged, decision, named)


def judged(
    verdict: Mapping[str, Any], root: str
) -> tuple[Decision | None, list[str], list[Reason]]:
    """The decision of adapter and merged model together, over all tasks.

    Args:
        verdict: as it lies on disk.
        root: the run, for messages.

    Returns:
        The decision (`None` where the merged model was not evaluated on every task), the tasks
        that are undecided, and why each task that did not pass keeps the run from a release.
    """
    decisions: list[Decision] = []
    undecided, reasons, unmeasured = [], [], []
    for suite in verdict["suites"]:
        for task in suite["tasks"]:
            name = f"{suite['suite']}/{task['task']}"
            if task["merged"] is None:
                unmeasured.append(name)
            for arm, decision in ((name, task["decision"]), (f"{name}, merged", task["merged"])):
                if decision is None:
                    continue
                decisions.append(decision)
                if decision == "INCONCLUSIVE":
                    undecided.append(arm)
                if decision != "PASS":
                    reasons.append(Reason(f"{arm}: {decision}", VERDICT_STATUS[decision]))
    if unmeasured:
        reasons.append(
            Reason(
                f"the merged model, which is what ships, was not evaluated on "
                f"{', '.join(unmeasured)}; run `lora-kit evaluate {root} --arm merged`",
                MISSING_STAGE,
            )
        )
        return None, undecided, reasons
    return combined(decisions), undecided, reasons


def names_its_merge(verdict: Mapping[str, Any], merge: Mapping[str, Any]) -> bool:
    """Whether the merged model that ships is the one that the verdict measured."""
    measured = verdict.get("merged_models", {}).get(verdict.get("ships"))
    return bool(measured == merged_identity(merge["files"]))


def _broken_merge(
    run: RunDirectory, merged: Path, verdict: Mapping[str, Any], merge: Mapping[str, Any]
) -> Iterator[Reason]:
    """Yield whatever keeps the merged files from being those of this run, as they were compared."""
    if not set(merge) >= MERGE_KEYS:
        yield Reason(f"{merged / MERGE_RECORD}: not a merge of this version; merge again", 2)
        return
    failed = VERDICT_STATUS["FAIL"]
    for problem in against_passing(merge, run.load_recipe().backbone.quantization):
        text = f"the merged files are not what was measured (see merge.json): {problem}"
        yield Reason(text, failed)
    if merge["backbone"] != verdict["backbone"]:
        yield Reason("the verdict and the merged files are of different backbones", failed)
    if merge["adapter"] != adapter_sha256(run.adapter):
        yield Reason("the merged files are of another adapter; merge again", failed)
    if verdict["merged"] is not None and not names_its_merge(verdict, merge):
        text = f"another merge was evaluated; run `lora-kit evaluate {run.root} --arm merged` again"
        yield Reason(text, failed)
    # Of a flat directory: a name that leads elsewhere is none of these.
    present = {path.name for path in merged.iterdir()}
    changed = [
        name
        for name, digest in merge["files"].items()
        if name not in present
        or not (merged / name).is_file()
        or file_sha256(merged / name) != digest
    ]
    if changed:
        text = f"merged files changed since they were compared: {', '.join(changed)}"
        yield Reason(text, failed)
    new = sorted(present - {*merge["files"], MERGE_RECORD})
    if new:
        yield Reason(f"{merged}: holds what nobody compared: {', '.join(new)}; remove it", failed)


def _broken_lineage(run: RunDirectory, verdict: Mapping[str, Any]) -> Iterator[Reason]:
    """Yield whatever keeps recipe, adapter and verdict from being of one run."""
    failed = VERDICT_STATUS["FAIL"]
    if verdict["adapter"] != adapter_sha256(run.adapter):
        yield Reason("the verdict is of another adapter; evaluate again", failed)
    record = read_json(run.record, ReleaseError)
    trained = record.get("recipe_sha256")
    if trained is None:
        text = f"{run.record}: does not say which recipe was trained, as earlier versions did not"
        yield Reason(f"{text}; train again", MISSING_STAGE)
    elif trained != training_digest(run.recipe):
        text = f"{run.recipe}: describes another training than the run's. Fix: revert it"
        yield Reason(text, failed)
    if verdict["suite_digests"] != record.get("suites"):
        text = "the verdict is not on the suites that were set before the training"
        yield Reason(text, failed)
