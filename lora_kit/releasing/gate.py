"""What may be released: a run that passed, whose merged files are what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lora_kit.adapters import adapter_sha256
from lora_kit.errors import ReleaseError
from lora_kit.evaluation.harness import check_verdict, read_verdict
from lora_kit.files import read_json
from lora_kit.gguf import file_sha256
from lora_kit.run import RunDirectory

MERGE_RECORD = "merge.json"
# The exit statuses of a verdict that is no PASS.
STATUS = {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}


@dataclass(frozen=True)
class Clearance:
    """What the gate saw."""

    verdict: dict[str, Any]
    merge: dict[str, Any]


def clear(run: RunDirectory) -> Clearance:
    """Let a run pass, or say why not.

    Raises:
        ReleaseError: with every reason, and the exit status of the worst.
    """
    verdict = read_verdict(run.evaluation)
    check_verdict(run.evaluation)
    record = run.merged / MERGE_RECORD
    if not record.is_file():
        raise ReleaseError(f"{run.root}: not merged yet; run `lora-kit merge {run.root}`", status=2)
    merge = read_json(record, ReleaseError)
    if not {"verification", "backbone", "adapter", "files"} <= set(merge):
        raise ReleaseError(f"{record}: not a merge of this version; merge again", status=2)
    reasons = [
        f"{suite['suite']}/{task['task']}: {task['decision']}"
        for suite in verdict["suites"]
        for task in suite["tasks"]
        if task["decision"] != "PASS"
    ]
    status = STATUS[verdict["decision"]]
    broken = list(_broken_lineage(run, verdict, merge))
    if broken:
        status = STATUS["FAIL"]
    if reasons or broken:
        raise ReleaseError(
            f"{run.root}: not released, the verdict is {verdict['decision']}\n"
            + "\n".join(f"  {reason}" for reason in reasons + broken),
            status=status,
        )
    return Clearance(verdict, merge)


def _broken_lineage(
    run: RunDirectory, verdict: dict[str, Any], merge: dict[str, Any]
) -> Iterator[str]:
    """Yield whatever keeps recipe, adapter, verdict and merged files from being of one run."""
    if not merge["verification"].get("passed"):
        yield "the merged files are not what was measured (see merge.json)"
    if merge["backbone"] != verdict["backbone"]:
        yield "the verdict and the merged files are of different backbones"
    adapter = adapter_sha256(run.adapter)
    if verdict.get("merged") not in (None, "PASS"):
        yield f"the merged model, measured as an arm, is {verdict['merged']}"
    if verdict["adapter"] != adapter:
        yield "the verdict is of another adapter; evaluate again"
    if merge["adapter"] != adapter:
        yield "the merged files are of another adapter; merge again"
    if verdict["suite_digests"] != read_json(run.record, ReleaseError).get("suites"):
        yield "the verdict is not on the suites that were set before the training"
    changed = [
        name
        for name, digest in merge["files"].items()
        if not (run.merged / name).is_file() or file_sha256(run.merged / name) != digest
    ]
    if changed:
        yield f"merged files changed since they were compared: {', '.join(changed)}"
