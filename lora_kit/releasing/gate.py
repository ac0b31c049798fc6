"""What may be released: a run that passed, whose merged files are what was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from lora_kit.errors import ReleaseError
from lora_kit.evaluation.harness import check_verdict, read_verdict
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
    merge = json.loads(record.read_text(encoding="utf-8"))
    reasons = [
        f"{suite['suite']}/{task['task']}: {task['decision']}"
        for suite in verdict["suites"]
        for task in suite["tasks"]
        if task["decision"] != "PASS"
    ]
    status = STATUS[verdict["decision"]]
    if not merge["verification"]["passed"]:
        reasons.append("the merged files are not what was measured (see merge.json)")
        status = STATUS["FAIL"]
    if merge["backbone"] != verdict["backbone"]:
        reasons.append("the verdict and the merged files are of different backbones")
        status = STATUS["FAIL"]
    if reasons or status:
        raise ReleaseError(
            f"{run.root}: not released, the verdict is {verdict['decision']}\n"
            + "\n".join(f"  {reason}" for reason in reasons),
            status=status,
        )
    return Clearance(verdict, merge)
