"""Made-up runs, sweeps and seeds on disk: small ledgers with what belongs to them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lora_kit.evaluation.ledger import Entry, write_ledger
from lora_kit.evaluation.suite import Suite

BACKBONE = "b" * 64


def suite(role: str = "gain", name: str = "", kind: str = "loss", **fields: Any) -> Suite:
    task = {"name": f"{kind}-task", "kind": kind, "source": "x"}
    task |= {"margin": 0.05} if role == "retention" else {}
    tasks = [task | fields]
    return Suite.model_validate({"name": name or f"a-{role}", "role": role, "tasks": tasks})


GAIN = suite()
KEEP = suite("retention", kind="multiple_choice")
# Scores by item.
Scores = Mapping[str, float | None]


def scores(values: Sequence[float | None], start: int = 0) -> dict[str, float | None]:
    return {f"i{start + n}": value for n, value in enumerate(values)}


def rows(of: Suite, arm: str, values: Scores, text: str = "", **fields: Any) -> list[Entry]:
    task = of.tasks[0].name
    return [
        Entry(
            arm,
            of.name,
            task,
            item,
            f"c-{item}",
            score,
            f"{arm} said {score} {text}",
            f"prompt of {item} {text}",
            f"reference of {item} {text}",
            3,
            0.1,
            **{name: value(item) for name, value in fields.items()},
        )
        for item, score in values.items()
    ]


def write_results(
    folder: Path,
    results: Sequence[tuple[Suite, Scores, Scores]],
    backbone: str = BACKBONE,
    adapter: str = "a" * 64,
    plan: Mapping[str, Any] | None = None,
    **fields: Any,
) -> None:
    """Write a directory of results: suites with the scores of base and adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        entry
        for of, base, own in results
        for arm, values in (("base", base), ("adapter", own))
        for entry in rows(of, arm, values, **fields)
    ]
    write_ledger(folder / "ledger.parquet", entries, plan)
    suites = [of for of, _, _ in results]
    dumped = [one.model_dump(mode="json") for one in suites]
    (folder / "suites.json").write_text(json.dumps(dumped))
    digests = {one.name: one.digest for one in suites}
    lineage = {"backbone": backbone, "adapter": adapter, "suite_digests": digests}
    (folder / "verdict.json").write_text(json.dumps(lineage))


def write_run(root: Path, steps: int = 0, seed: int = 0, **recipe: Any) -> Path:
    """Write recipe, record and metrics of a run."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "recipe.yaml").write_text(yaml.safe_dump({"name": root.name, "seed": seed} | recipe))
    training = {"steps": steps, "kept_step": steps, "tokens": 1000 * steps, "seconds": 61.5}
    training |= {"validation_before": 4.0, "validation_after": 2.0} if steps else {}
    versions = {"torch": "2.0", "lora-kit": f"0.{seed}"}
    record = {"seed": seed, "training": training, "versions": versions}
    (root / "run.json").write_text(json.dumps(record))
    lines = [
        {"step": n, "loss": 4 / (1 + n / 20) + 0.3 * (n * 7 % 5) / 5 + seed / 10}
        | ({"validation_loss": 3.5 / (1 + n / 40) + seed / 10} if n % 25 == 0 else {})
        for n in range(1, steps + 1)
    ]
    (root / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return root


def evaluated(root: Path, results: Sequence[tuple[Suite, Scores, Scores]], **fields: Any) -> Path:
    """Write a run with an evaluation."""
    write_results(write_run(root) / "evaluation", results, **fields)
    return root
