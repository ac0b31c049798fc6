"""Sequential stopping: how the items of a task are cut into looks, and at which one it ends.

The path follows from the results alone, so that it can be recomputed from a ledger. A task is asked
until the adapter is decided, or can hardly be any more. A merged model, or an exported file, is
judged at the look at which the adapter ended; if one is undecided there, all items that are left
are asked, of the base and its controls as well. Of several merged models, one is selected on half
of the items, which takes all of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from lora_kit.evaluation.arm_names import is_asked_with_shipped, is_shipped
from lora_kit.evaluation.comparisons import compare, decide
from lora_kit.evaluation.ledger import DRIFT, Entry
from lora_kit.evaluation.pairs import Entries, Pairs, pair
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.recipe.sections import MERGED_ARMS, EvaluationSpec
from lora_kit.runtime.errors import EvaluationError
from lora_kit.statistics.decisions import Decision, PairedComparison
from lora_kit.statistics.looks import Look, Looks, ordered_clusters

EndReason = Literal["decided", "futile", "last look", "stopped too soon"]


@dataclass(frozen=True)
class Stopping:
    """Cut of every task's clusters into looks.

    Attributes:
        looks: largest number of looks; 1 asks all items of every task.
        shape: shape of the error spending, as in `spending.spent_error`.
    """

    looks: int = 1
    shape: float = -4.0

    @classmethod
    def of(cls, spec: EvaluationSpec) -> Stopping:
        """Return the cut that a recipe asks for."""
        return cls(spec.looks, spec.spending) if spec.stopping == "sequential" else cls()

    def plan(self, clusters: int, suite: Suite, task: TaskSpec) -> Looks:
        """Return the looks at a task; for a gain, half of the error is each side's.

        A judge is asked once, after all answers.
        """
        alpha = suite.alpha if suite.role == "retention" else suite.alpha / 2
        if task.kind == "judge":
            return Looks.plan(clusters, 1, alpha, self.shape)
        return Looks.plan(clusters, self.looks, alpha, self.shape, task.is_graded)


# All items of every task, at once.
FIXED = Stopping()


@dataclass(frozen=True)
class PlannedTask:
    """Size of a task, before anything is asked.

    Attributes:
        clusters: number of clusters.
        items: number of items that are asked by the end of each look.
    """

    clusters: int
    items: tuple[int, ...]


@dataclass(frozen=True)
class LookPlan:
    """Looks at all tasks, before anything is asked.

    Attributes:
        stopping: cut into looks.
        tasks: size of each task, by `suite/task`.
    """

    stopping: Stopping = Stopping()
    tasks: Mapping[str, PlannedTask] = field(default_factory=dict)

    def looks(self, suite: Suite, task: TaskSpec) -> Looks:
        """Return the looks at a task; a single one at a task that is not planned."""
        planned = self.tasks.get(f"{suite.name}/{task.name}")
        clusters = planned.clusters if planned else 1
        return self.stopping.plan(clusters, suite, task)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> LookPlan:
        """Return the plan of JSON values; of `None`, that of all items at once.

        Raises:
            pydantic.ValidationError: if a value is missing or of another type.
        """
        return cls() if values is None else TypeAdapter(cls).validate_python(values)


@dataclass(frozen=True)
class TaskEnd:
    """End of a task's questions to one arm.

    Attributes:
        look: last look at its items.
        reason: `decided`; `futile`: a decision was improbable; `last look`: all items were asked;
            `stopped too soon`: none of them, which `lora-kit verify` refuses.
        pairs: items that were asked by then, paired with those of the base.
        comparison: comparison at the look's level.
        decision: decision at that look.
        why: reason for a decision other than the comparison's; else empty.
    """

    look: Look
    reason: EndReason
    pairs: Pairs
    comparison: PairedComparison
    decision: Decision
    why: str


def asked_looks(entries: Entries) -> int:
    """Return the number of the last look that has entries; 1 without entries."""
    return max((entry.look for entry in entries.values()), default=1)


def until_look(entries: Entries, look: int) -> dict[str, Entry]:
    """Return the entries that were asked by the end of a look."""
    return {item: entry for item, entry in entries.items() if entry.look <= look}


def adapter_end(arms: Mapping[str, Entries], suite: Suite, task: TaskSpec, looks: Looks) -> TaskEnd:
    """Return where a task ends for the adapter: at the first look that decides, or is futile.

    Args:
        arms: entries of the arms, with those that are judged.
        suite: suite of the task.
        task: the task.
        looks: looks at the task.

    Raises:
        EvaluationError: if no item has a score in both arms.
    """
    base, adapter = arms.get("base", {}), arms.get("adapter", {})
    asked = min(asked_looks(adapter), len(looks))
    for number in range(1, asked):
        try:
            end = end_at(base, adapter, suite, task, looks.look(number))
        except EvaluationError:
            continue  # no item of these has a score in both arms
        if end.reason != "stopped too soon":
            return end
    return end_at(base, adapter, suite, task, looks.look(asked))


def end_at(base: Entries, arm: Entries, suite: Suite, task: TaskSpec, look: Look) -> TaskEnd:
    """Judge an arm at one look; the reason says if the task ends there.

    Raises:
        EvaluationError: if no item that was asked by then has a score in both arms.
    """
    where = f"{suite.name}/{task.name}"
    pairs = pair(until_look(base, look.number), until_look(arm, look.number), task, where)
    comparison = compare(pairs, task, look)
    decision, why = decide(pairs, comparison.decision, task)
    reason: EndReason = "stopped too soon"
    if look.is_last:
        reason = "last look"
    elif decision != "INCONCLUSIVE":
        reason = "decided"
    elif comparison.decision == decision and look.is_futile(comparison.one_sided):
        reason = "futile"
    return TaskEnd(look, reason, pairs, comparison, decision, why)


def merged_end(
    arms: Mapping[str, Entries], suite: Suite, task: TaskSpec, looks: Looks, end: TaskEnd
) -> tuple[int, Look]:
    """Return the look until which merged models and files are asked, and the one of their level.

    Args:
        arms: entries of the arms, with those that are judged.
        suite: suite of the task.
        task: the task.
        looks: looks at the task.
        end: where the task ended for the adapter.
    """
    if all(arm in arms for arm in MERGED_ARMS):
        # Asked for once, with all items: the whole error is that look's.
        return len(looks), Looks.fixed(looks.alpha).look(1)
    if end.reason == "decided" and not end.look.is_last:
        base, shipped = arms.get("base", {}), [arms[arm] for arm in arms if is_shipped(arm)]
        if not all(_is_decided(base, one, suite, task, end.look) for one in shipped):
            return len(looks), looks.look(len(looks))
    return end.look.number, end.look


def _is_decided(base: Entries, arm: Entries, suite: Suite, task: TaskSpec, look: Look) -> bool:
    try:
        return end_at(base, arm, suite, task, look).reason != "stopped too soon"
    except EvaluationError:
        return False  # no item of these has a score in both arms


def require_path(arms: Mapping[str, Entries], suite: Suite, task: TaskSpec, plan: LookPlan) -> None:
    """Check that a task was asked as far as its results say, in the order that was drawn.

    Raises:
        EvaluationError: naming the task, and where it should have ended.
    """
    looks, where = plan.looks(suite, task), f"{suite.name}/{task.name}"
    end = adapter_end(arms, suite, task, looks)
    if end.reason == "stopped too soon":
        raise EvaluationError(
            f"{where}: not asked to its end (got look {end.look.number} of {len(looks)} as the "
            "last one, at which nothing was decided). Fix: restore the ledger, or evaluate again"
        )
    merged_until = merged_end(arms, suite, task, looks, end)[0]
    last = {arm: merged_until if is_asked_with_shipped(arm) else end.look.number for arm in arms}
    for arm, entries in arms.items():
        if arm != DRIFT and asked_looks(entries) != last[arm]:
            raise EvaluationError(
                f"{where}: arm {arm} was not asked until its task's end (got look "
                f"{asked_looks(entries)} of {len(looks)} as the last one; it ended at look "
                f"{last[arm]}). Fix: restore the ledger, or evaluate again"
            )
    if where in plan.tasks:
        _require_items(arms["base"], suite, where, plan.tasks[where], looks)


def _require_items(
    entries: Entries, suite: Suite, where: str, planned: PlannedTask, looks: Looks
) -> None:
    """Check that the looks hold the items that were planned, by the drawn order of clusters."""
    order = ordered_clusters([entry.cluster for entry in entries.values()], suite.seed, where)
    place = {cluster: n for n, cluster in enumerate(order)}
    is_ordered = all(
        entry.look == look_of_place(place[entry.cluster], looks) for entry in entries.values()
    )
    wanted = planned.items[asked_looks(entries) - 1]
    if not is_ordered or len(entries) != wanted:
        raise EvaluationError(
            f"{where}: not the items that were to be asked (got {len(entries)} of {wanted} items"
            f"{'' if is_ordered else ', in another order than the drawn one'}). Fix: restore the "
            "ledger, or evaluate again"
        )


def look_of_place(place: int, looks: Looks) -> int:
    """Return the number of the look that asks the cluster at a place of the drawn order."""
    return bisect_right(looks.ends, place) + 1
