"""Results of a run: the ledgers of its evaluations, read one task at a time, each item once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from lora_kit.evaluation.assembly import LEDGER, VERDICT
from lora_kit.evaluation.comparisons import texts_to_judge
from lora_kit.evaluation.ledger import Entry, Ledger
from lora_kit.evaluation.ledger_view import ADAPTER_ARM
from lora_kit.evaluation.stopping import LookPlan
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.verdict_file import Lineage, read_suites
from lora_kit.runs.directory import HALF_A, HALF_B, RunDirectory
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import read_json
from lora_kit.selection.comparison.runs import NamedRun
from lora_kit.statistics.looks import Looks

BASE_ARM = "base"


@dataclass(frozen=True)
class TaskPart:
    """Results of a run on some items of a task.

    Attributes:
        base: entries of the base.
        adapter: entries of the adapter.
        looks: looks at the task.
    """

    base: Mapping[str, Entry]
    adapter: Mapping[str, Entry]
    looks: Looks


@dataclass(frozen=True)
class RunTask:
    """Results of a run on a task, by directory.

    Attributes:
        parts: results in each directory that has the task, in the order of their precedence.
    """

    parts: Mapping[str, TaskPart]

    @property
    def whole(self) -> TaskPart:
        """All results, where an item of several directories counts once.

        Halves are asked in full. An evaluation in looks ends where its results say, so that it
        stands alone, and only for a task of which there is no half.
        """
        at_once = [part for part in self.parts.values() if len(part.looks) == 1]
        used = at_once or list(self.parts.values())[:1]
        base: dict[str, Entry] = {}
        adapter: dict[str, Entry] = {}
        for part in reversed(used):
            base.update(part.base)
            adapter.update(part.adapter)
        return TaskPart(base, adapter, used[0].looks)

    @property
    def half_b(self) -> TaskPart | None:
        """Results on half B; `None` without them."""
        return self.parts.get(HALF_B)

    def halves_of(self, items: Collection[str]) -> frozenset[str]:
        """Return the halves that hold any of these items, as far as this run knows them."""
        halves = (HALF_A, HALF_B)
        return frozenset(
            half
            for half in halves
            if half in self.parts and not self.parts[half].adapter.keys().isdisjoint(items)
        )


@dataclass(frozen=True)
class _Source:
    """Directory of results: ledger, suites, and looks at their tasks."""

    name: str
    ledger: Ledger
    suites: Mapping[str, Suite]
    plan: LookPlan


class RunResults:
    """Results of a run.

    Attributes:
        suites: suites by name, as the first directory that has them defines them.
        redefined: names of the suites that another directory of the run defines otherwise; its
            results on them are left out.
        backbone: digest of the backbone's fingerprint.
        adapter: sha256 of the adapter's weights; empty if it is not recorded.
    """

    def __init__(self, named: NamedRun):
        """Open the ledgers of a run.

        Raises:
            EvaluationError: if it has no results, or they cannot be read, or are of several
                adapters.
        """
        run = named.directory
        folders = [run.root / HALF_A, run.root / HALF_B, run.evaluation]
        folders = [folder for folder in folders if (folder / LEDGER).is_file()]
        if not folders:
            raise EvaluationError(
                f"{named.name}: has no results (got no {LEDGER} in {HALF_A}, {HALF_B} or "
                f"{run.evaluation.name} of {run.root}). Fix: evaluate it, or leave it out"
            )
        self._sources = [_open(folder) for folder in folders]
        self.suites: dict[str, Suite] = {}
        self.redefined: list[str] = []
        for source in self._sources:
            for name, suite in source.suites.items():
                if self.suites.setdefault(name, suite).digest != suite.digest:
                    self.redefined.append(name)
        self.backbone, self.adapter = _lineage(named.name, run, folders)

    def read(self, suite: Suite, task: TaskSpec) -> RunTask:
        """Return the results on a task; texts are those that comparing it needs."""
        texts = {*texts_to_judge(task), "prompt", "reference"}
        parts = {}
        for source in self._of(suite):
            arms = source.ledger.arms(suite.name, task.name, texts)
            base, adapter = arms.get(BASE_ARM, {}), arms.get(ADAPTER_ARM, {})
            if adapter:
                parts[source.name] = TaskPart(base, adapter, source.plan.looks(suite, task))
        return RunTask(parts)

    def texts(self, suite: Suite, task: TaskSpec, items: Collection[str]) -> dict[str, Entry]:
        """Return the adapter's complete entries of some items."""
        found: dict[str, Entry] = {}
        for source in self._of(suite):
            missing = set(items) - found.keys()
            if missing:
                entries = source.ledger.entries(suite.name, task.name, [ADAPTER_ARM], missing)
                found.update((entry.item, entry) for entry in entries)
        return found

    def _of(self, suite: Suite) -> list[_Source]:
        return [
            source
            for source in self._sources
            if suite.name in source.suites and source.suites[suite.name].digest == suite.digest
        ]


def _open(folder: Path) -> _Source:
    ledger = Ledger(folder / LEDGER)
    try:
        plan = LookPlan.from_dict(ledger.plan)
    except ValidationError as error:
        raise EvaluationError(
            f"{folder / LEDGER}: does not say which items were to be asked (got "
            f"{error.errors()[0]['msg']}). Fix: evaluate again"
        ) from error
    return _Source(folder.name, ledger, {one.name: one for one in read_suites(folder)}, plan)


def _lineage(name: str, run: RunDirectory, folders: Sequence[Path]) -> tuple[str, str]:
    """Return the digests of the backbone and the adapter that all results are of."""
    found = [_read_lineage(path) for folder in folders if (path := folder / VERDICT).is_file()]
    for what, digests in (
        ("backbones", {one.backbone for one in found}),
        ("adapters", {one.adapter for one in found}),
    ):
        if len(digests) > 1:
            raise EvaluationError(
                f"{name}: its results are of several {what} (got "
                f"{', '.join(sorted(one[:12] for one in digests))}). Fix: evaluate it again"
            )
    if found:
        return found[0].backbone, found[0].adapter
    digest = (run.load_record().get("backbone") or {}).get("digest", "")
    if not digest:
        raise EvaluationError(
            f"{name}: its backbone is not known (got no {VERDICT} and no backbone in "
            f"{run.record.name}). Fix: evaluate it again"
        )
    return digest, ""


def _read_lineage(path: Path) -> Lineage:
    try:
        return TypeAdapter(Lineage).validate_python(read_json(path, EvaluationError))
    except ValidationError as error:
        raise EvaluationError(
            f"{path}: not a verdict of this version (got {error.errors()[0]['msg']}). Fix: "
            "evaluate again"
        ) from error
