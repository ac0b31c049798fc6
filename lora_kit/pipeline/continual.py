"""A sequence of adapters, one trained after the other: what each stage did to the tasks of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_kit.evaluation.harness import read_verdict
from lora_kit.evaluation.suite import Suite, load_suites
from lora_kit.evaluation.verdict import TaskVerdict, Verdict
from lora_kit.pipeline import evaluate
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import write_json
from lora_kit.statistics.transfer import Transfer, transfer

RECORD = "continual.json"


@dataclass(frozen=True)
class Column:
    """A task and the stage that was trained for it, counted from 0."""

    suite: str
    task: str
    unit: str
    higher_is_better: bool
    stage: int


@dataclass(frozen=True)
class ContinualResult:
    """The matrix of tasks by stages.

    Attributes:
        stages: names, the base first.
        scores: (stages, columns), in each task's own unit.
        transfers: by unit, of oriented scores (higher is better), the mean over a stage's tasks of
            that unit; only units that every stage has a task of.
    """

    stages: tuple[str, ...]
    columns: tuple[Column, ...]
    scores: tuple[tuple[float, ...], ...]
    transfers: dict[str, Transfer]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
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
        targets: runs or adapters in the order in which they were trained, two at least.
        suites: for each target the suite that it was trained for; by default those with the role
            gain in its recipe.
        backbone: of adapters; what is set in it comes before what they say.
        output: where each stage's evaluation and `continual.json` go.
        fresh: measure everything again.

    Raises:
        LoraKitError: if a stage cannot be evaluated, or it is not known what it was trained for.
    """
    if len(targets) < 2:
        raise EvaluationError("a sequence has two stages at least; name the runs in their order")
    if suites and len(suites) != len(targets):
        raise EvaluationError(
            f"{len(targets)} stages and {len(suites)} suites; name one --suite for each stage"
        )
    trained_for = [[name] for name in suites] if suites else [_gain_suites(t) for t in targets]
    every = list(dict.fromkeys(name for names in trained_for for name in names))
    verdicts = [
        evaluate(target, every, backbone, output / f"stage-{number}", no_cache=no_cache).verdict
        for number, target in enumerate(targets, start=1)
    ]
    backbones = [
        read_verdict(output / f"stage-{number}")["backbone"]
        for number in range(1, len(targets) + 1)
    ]
    for target, found_on in zip(targets, backbones, strict=True):
        if found_on != backbones[0]:
            raise EvaluationError(f"{target}: its backbone is not that of {targets[0]}")
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
            f"{target}: no run, so it is not known what it was trained for; name one --suite for "
            "each stage"
        )
    named = Recipe.load(path).evaluation.suites
    gain = [name for name in named if Suite.load(name).role == "gain"]
    if not gain:
        raise EvaluationError(f"{target}: its recipe has no suite with the role gain; use --suite")
    return gain


def assemble(
    stages: Sequence[str], verdicts: Sequence[Verdict], of_stage: dict[str, int]
) -> ContinualResult:
    """The matrix from the stages' verdicts, whose bases are all the same."""
    tasks = [(s.suite, t) for s in verdicts[0].suites for t in s.tasks]
    columns = tuple(
        Column(suite, task.task, task.unit, task.higher_is_better, of_stage[suite])
        for suite, task in tasks
    )
    base = tuple(task.base for _, task in tasks)
    after = [tuple(task.adapter for task in _tasks(verdict)) for verdict in verdicts]
    scores = (base, *after)
    return ContinualResult(
        tuple(stages), columns, scores, _transfers(columns, scores, len(verdicts))
    )


def _tasks(verdict: Verdict) -> list[TaskVerdict]:
    return [task for suite in verdict.suites for task in suite.tasks]


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
