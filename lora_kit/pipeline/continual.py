"""Continual learning: the effect of each training stage on the tasks of all stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_kit.evaluation.suite import Suite, load_suites
from lora_kit.evaluation.verdict import Verdict
from lora_kit.evaluation.verdict_file import read_verdict
from lora_kit.pipeline import evaluate
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import write_json
from lora_kit.statistics.transfer import Transfer, transfer

RECORD = "continual.json"


@dataclass(frozen=True)
class Column:
    """A task, and the stage that was trained for it, counted from 0."""

    suite: str
    task: str
    unit: str
    higher_is_better: bool
    stage: int


@dataclass(frozen=True)
class ContinualResult:
    """Matrix of tasks by stages.

    Attributes:
        stages: names of the stages, the base first.
        columns: tasks.
        scores: (stages, columns), in each task's own unit.
        transfers: transfer by unit, from scores oriented so that higher is better, averaged over a
            stage's tasks of that unit; only units of which every stage has a task.
    """

    stages: tuple[str, ...]
    columns: tuple[Column, ...]
    scores: tuple[tuple[float, ...], ...]
    transfers: dict[str, Transfer]

    def to_dict(self) -> dict[str, Any]:
        """Return the matrix as JSON values."""
        return asdict(self)


def evaluate_continual(
    targets: Sequence[Path],
    suites: Sequence[str] | None = None,
    backbone: BackboneSpec | None = None,
    output: Path = Path("continual"),
    no_cache: bool = False,
) -> ContinualResult:
    """Evaluate every stage on the gain suites of all stages.

    Args:
        targets: at least two runs or adapters, in the order in which they were trained.
        suites: suite that each target was trained for; by default the gain suites of its recipe.
        backbone: backbone of adapters; its fields override what the adapters record.
        output: directory of each stage's evaluation and `continual.json`.
        no_cache: if true, ignore existing results.

    Raises:
        LoraKitError: if a stage cannot be evaluated, or its suite is unknown.
    """
    if len(targets) < 2:
        raise EvaluationError(
            f"continual: needs at least two stages (got {len(targets)}). Fix: name the runs in the "
            "order of their training"
        )
    if suites and len(suites) != len(targets):
        raise EvaluationError(
            f"--suite: {len(targets)} stages need as many suites (got {len(suites)}). Fix: name "
            "one for each stage"
        )
    trained_for = [[name] for name in suites] if suites else [_gain_suites(t) for t in targets]
    every = list(dict.fromkeys(name for names in trained_for for name in names))
    # The scores of all stages are of the same items: of all.
    verdicts = [
        evaluate(
            target, every, backbone, output / f"stage-{number}", no_cache=no_cache, stopping="none"
        ).verdict
        for number, target in enumerate(targets, start=1)
    ]
    backbones = [
        read_verdict(output / f"stage-{number}").lineage.backbone
        for number in range(1, len(targets) + 1)
    ]
    for target, found_on in zip(targets, backbones, strict=True):
        if found_on != backbones[0]:
            raise EvaluationError(
                f"{target}: has another backbone than {targets[0]}. Fix: compare stages of one "
                "backbone"
            )
    of_stage = {
        suite.name: stage
        for stage, names in reversed(list(enumerate(trained_for)))
        for suite in load_suites(names)
    }
    found = assemble(["base", *(target.resolve().name for target in targets)], verdicts, of_stage)
    write_json(output / RECORD, found.to_dict())
    return found


def _gain_suites(target: Path) -> list[str]:
    path = target / "recipe.yaml"
    if not path.is_file():
        raise EvaluationError(
            f"{target}: not a run, so its suite is unknown. Fix: name one --suite for each stage"
        )
    named = Recipe.load(path).evaluation.suites
    gain = [name for name in named if Suite.load(name).role == "gain"]
    if not gain:
        raise EvaluationError(
            f"{target}: its recipe has no suite with the role gain. Fix: name one with --suite"
        )
    return gain


def assemble(
    stages: Sequence[str], verdicts: Sequence[Verdict], of_stage: dict[str, int]
) -> ContinualResult:
    """Return the matrix of the stages' verdicts, which share one base."""
    columns = tuple(
        Column(suite.suite, task.task, task.unit, task.higher_is_better, of_stage[suite.suite])
        for suite, task in verdicts[0].tasks
    )
    base = tuple(task.base for _, task in verdicts[0].tasks)
    after = [tuple(task.adapter for _, task in verdict.tasks) for verdict in verdicts]
    scores = (base, *after)
    return ContinualResult(
        tuple(stages), columns, scores, _transfers(columns, scores, len(verdicts))
    )


def _transfers(
    columns: Sequence[Column], scores: Sequence[Sequence[float]], stages: int
) -> dict[str, Transfer]:
    found = {}
    for unit in dict.fromkeys(column.unit for column in columns):
        of = [
            [n for n, c in enumerate(columns) if (c.unit, c.stage) == (unit, s)]
            for s in range(stages)
        ]
        if not all(of):
            continue
        found[unit] = transfer(
            [
                [
                    sum(row[n] if columns[n].higher_is_better else -row[n] for n in part)
                    / len(part)
                    for part in of
                ]
                for row in scores
            ]
        )
    return found
