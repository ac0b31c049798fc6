"""Run directory as after evaluation and merging, with scores chosen by a test."""

from pathlib import Path
from typing import Any

from lora_kit.adapter.saved import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_sha256
from lora_kit.evaluation.harness import LEDGER, VERDICT
from lora_kit.evaluation.ledger import Entry, write_ledger
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict_file import SUITES
from lora_kit.merging.record import MERGE_RECORD, merged_identity
from lora_kit.recipe.identity import training_digest
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.files import write_json
from lora_kit.runtime.hashes import file_sha256
from lora_kit.runtime.machine import machine, versions
from tests.evaluation.in_memory import judge

SUITE = Suite.model_validate(
    {
        "name": "better",
        "role": "gain",
        "tasks": [{"name": "loss", "kind": "loss", "source": "x"}],
    }
)
KEEP = Suite.model_validate(
    {
        "name": "keep",
        "role": "retention",
        "tasks": [{"name": "prose", "kind": "loss", "source": "x", "margin": 9}],
    }
)
BETTER = [2.0, 2.1, 2.2] * 10
WORSE = [3.5, 3.6, 3.7] * 10
UNDECIDED = [2.0, 4.0] * 15
SAME = object()


def evaluated(
    root: Path,
    after: list[float],
    merged: Any = SAME,
    suite: Suite = SUITE,
    **merge: Any,
) -> RunDirectory:
    """Return a run whose base has a loss of 3 on each item.

    Args:
        root: run directory.
        after: losses of the adapter on the items.
        merged: losses of the merged model, by default the adapter's; `None` if not evaluated.
        suite: suite with one task.
        merge: values of the merge record to override.
    """
    run = RunDirectory(root)
    arms = {"base": [3.0] * len(after), "adapter": after, "merged": after}
    if merged is not SAME:
        arms["merged"] = merged or []
    task = suite.tasks[0].name
    rows = [
        Entry(arm, suite.name, task, f"i{n}", f"c{n}", score, "", "", "", 1, 0.1)
        for arm, scores in arms.items()
        for n, score in enumerate(scores)
    ]
    write_ledger(run.evaluation / LEDGER, rows)
    write_json(run.evaluation / SUITES, [suite.model_dump(mode="json")])
    run.adapter.mkdir()
    (run.adapter / ADAPTER_WEIGHTS).write_bytes(b"adapter")
    write_json(run.adapter / ADAPTER_CONFIG, {"r": 4})
    run.merged.mkdir()
    weights = run.merged / "model.safetensors"
    weights.write_bytes(b"merged")
    record = _merge_record(adapter_sha256(run.adapter), {weights.name: file_sha256(weights)})
    lineage = {
        "backbone": "b",
        "adapter": record["adapter"],
        "suite_digests": {suite.name: suite.digest},
        "merged_models": {"merged": merged_identity(record["files"])},
    }
    write_json(run.evaluation / VERDICT, judge(rows, [suite]).to_dict() | lineage)
    write_json(run.merged / MERGE_RECORD, record | merge)
    _write_record(run, suite)
    return run


def _merge_record(adapter: str, files: dict[str, str]) -> dict[str, Any]:
    return {
        "backbone": "b",
        "adapter": adapter,
        "files": files,
        "into": "dequantized",
        "dtype": "float32",
        "compared_on": "held-out rows",
        "verification": {
            "passed": True,
            "positions": 9,
            "top1_agreement": 1.0,
            "mean_kl": 1e-7,
            "control_mean_kl": 0.5,
            "modules": 4,
            "least_kept": 0.999,
            "median_kept": 1.0,
            "most_kept": 1.001,
            "reasons": [],
            "computed_in": "float32",
        },
    }


def _write_record(run: RunDirectory, suite: Suite) -> None:
    run.recipe.write_text(Recipe.load("quickstart").to_yaml())
    counts = {"used": 3, "tokens": 30, "supervised_tokens": 9, "truncated": 0, "dropped": 0}
    run.update_record(
        suites={suite.name: suite.digest},
        backbone={"digest": "b"},
        data=counts | {"digest": "d"},
        versions=versions(),
        machine=machine(),
        checkout=None,
        recipe_sha256=training_digest(run.recipe),
    )
