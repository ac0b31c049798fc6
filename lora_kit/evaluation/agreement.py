"""Agreement of engines on the same items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_kit.evaluation.arm_names import is_serving_format, is_shipped
from lora_kit.evaluation.assembly import LEDGER, VERDICT
from lora_kit.evaluation.comparisons import task_score
from lora_kit.evaluation.ledger import Ledger
from lora_kit.evaluation.pairs import Entries, has_score
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import read_json

AGREEMENT = "agreement.json"
# The verdict's own arms, whichever engine answers them.
COMPARED = ("base", "adapter", "fewshot")


@dataclass(frozen=True)
class Agreement:
    """Scores of an arm, and of the same weights by another engine, on the items that both answered.

    Attributes:
        other: name of the other answers, such as `transformers` or the arm `adapter`.
        here: score of the arm, in the unit of the task.
        there: score of the other answers.
        changed: number of items whose score differs by more than 0.1% of the larger one.
        mean_nats: mean difference of a choice's log-likelihood, or of an item's loss per token,
            without its sign; `None` for generated answers.
        max_nats: largest such difference.
    """

    suite: str
    task: str
    arm: str
    other: str
    items: int
    here: float
    there: float
    changed: int
    mean_nats: float | None
    max_nats: float | None


@dataclass(frozen=True)
class OtherEngine:
    """Evaluation of the same adapter by another engine.

    Attributes:
        name: name of the engine.
        directory: directory of its results.
    """

    name: str
    directory: Path


def measure_agreement(
    directory: Path, suites: Sequence[Suite], other: OtherEngine | None
) -> list[Agreement]:
    """Compare files and served models with the adapter, and all arms with another engine's.

    Args:
        directory: directory of the evaluation.
        suites: suites of that evaluation.
        other: evaluation by another engine; `None` without one.

    Returns:
        One value for each suite, task and arm with items in common, in their order.

    Raises:
        EvaluationError: if a ledger cannot be read.
    """
    here, there = Ledger(directory / LEDGER), None
    if other is not None and _is_comparable(directory, other.directory):
        there = Ledger(other.directory / LEDGER)
    found: list[Agreement] = []
    for suite in suites:
        for task in suite.tasks:
            arms = here.arms(suite.name, task.name)
            for arm in arms:
                if is_serving_format(arm) and "adapter" in arms:
                    found += _compare(suite, task, arm, "adapter", arms[arm], arms["adapter"])
            if there is None or other is None:
                continue
            others = there.arms(suite.name, task.name)
            for arm in arms:
                if arm in others and (arm in COMPARED or is_shipped(arm)):
                    found += _compare(suite, task, arm, other.name, arms[arm], others[arm])
    return found


def _is_comparable(directory: Path, other: Path) -> bool:
    """Return true if two evaluations are of the same backbone, adapter and suites."""
    verdicts = [one / VERDICT for one in (directory, other)]
    if directory == other or not all(path.is_file() for path in verdicts):
        return False
    here, there = (read_json(path, EvaluationError) for path in verdicts)
    same = ("backbone", "adapter", "suite_digests")
    return all(here.get(name) == there.get(name) for name in same)


def _compare(
    suite: Suite, task: TaskSpec, arm: str, other: str, here: Entries, there: Entries
) -> list[Agreement]:
    """Return the agreement of two arms' entries; nothing without a common item."""
    pairs = [
        (entry, there[item])
        for item, entry in here.items()
        if has_score(entry) and item in there and has_score(there[item])
    ]
    if not pairs:
        return []
    scores = np.array([[one.score, two.score] for one, two in pairs], dtype=np.float64)
    nats = np.concatenate(
        [np.subtract(one.log_likelihoods, two.log_likelihoods) for one, two in pairs]
    )
    if task.kind == "loss":
        nats = scores[:, 0] - scores[:, 1]
    return [
        Agreement(
            suite=suite.name,
            task=task.name,
            arm=arm,
            other=other,
            items=len(pairs),
            here=task_score([one for one, _ in pairs], task),
            there=task_score([two for _, two in pairs], task),
            changed=int((~np.isclose(scores[:, 0], scores[:, 1], rtol=1e-3, atol=1e-9)).sum()),
            mean_nats=float(np.abs(nats).mean()) if nats.size else None,
            max_nats=float(np.abs(nats).max()) if nats.size else None,
        )
    ]


def agreement_sentences(found: Sequence[Agreement]) -> list[str]:
    """Return the agreement in words, one sentence for each arm and what it is compared with."""
    sentences = []
    for arm, other in dict.fromkeys((one.arm, one.other) for one in found):
        own = [one for one in found if (one.arm, one.other) == (arm, other)]
        largest = max((one.max_nats for one in own if one.max_nats is not None), default=None)
        text = (
            f"{arm} compared with {other}: {sum(one.changed for one in own):,} of "
            f"{sum(one.items for one in own):,} items have another score"
        )
        if largest is not None:
            text += f"; log-likelihoods differ by at most {largest:.2g} nats"
        sentences.append(text)
    return sentences
