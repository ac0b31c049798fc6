"""Choose the scale with the largest gain among those that keep retention, on half A.

Functions of verdicts only: intervals, margins and decisions are those of every evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_kit.evaluation.gain_choice import (
    GAIN_DECIMALS,
    Gain,
    failed_retention,
    role_tasks,
    standardized_gains,
)
from lora_kit.evaluation.suite import SuiteRole
from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.evaluation.verdict import Verdict
from lora_kit.rescaling.scale import AdapterScale


@dataclass(frozen=True)
class Candidate:
    """Scale, and its verdict on half A.

    Attributes:
        scale: scale of the adapter.
        verdict: verdict on half A.
    """

    scale: AdapterScale
    verdict: Verdict

    def tasks(self, role: SuiteRole) -> list[tuple[str, TaskVerdict]]:
        """Return the tasks of one role, as (suite/task, verdict)."""
        return role_tasks(self.verdict, role)

    @property
    def failed_retention(self) -> tuple[str, ...]:
        """Names of the retention tasks that are not shown to be within their margin."""
        return failed_retention(self.verdict)


@dataclass(frozen=True)
class ScaleChoice:
    """Chosen scale, and the reason.

    Attributes:
        chosen: index of the chosen candidate; `None` if no scale qualifies.
        reason: reason of the choice, in words.
        gains: gain of each candidate, see `standardized_gains`.
    """

    chosen: int | None
    reason: str
    gains: tuple[Gain, ...]


def choose_scale(candidates: Sequence[Candidate]) -> ScaleChoice:
    """Choose the scale with the largest gain of those that keep all retention tasks.

    A retention task is kept if its verdict is PASS: the pessimistic limit clears the margin. The
    gain is that of `standardized_gains`; of equal gains the weaker adapter is chosen, which changes
    the model less; of equally strong ones that which differs less from the adapter as trained: the
    uniform scale, then the larger factor of the intruder dimensions. The base, scale 0, is a
    candidate too, which keeps everything and gains nothing: no scale is chosen that does not gain
    more.
    """
    gains = standardized_gains([candidate.verdict for candidate in candidates])
    kept = [n for n, candidate in enumerate(candidates) if not candidate.failed_retention]
    if not kept:
        failed = "; ".join(f"{c.scale.name}: {', '.join(c.failed_retention)}" for c in candidates)
        reason = (
            "no scale is shown to keep all retention tasks within their margins on half A "
            f"({failed})"
        )
        return ScaleChoice(None, reason, gains)

    def preference(n: int) -> tuple[float, float, bool, float]:
        # A smaller factor does not make the update weaker: an intruder dimension holds a part of
        # the base's weight as well. Measured on SmolLM2-135M: norm 81.8 at factor 1, 82.1 at 0.
        scale, gain = candidates[n].scale, round(gains[n].value, GAIN_DECIMALS)
        return gain, -math.fsum(scale.parts), scale.is_uniform, scale.intruders

    best = max(kept, key=preference)
    if round(gains[best].value, GAIN_DECIMALS) <= 0:
        names = ", ".join(candidates[n].scale.name for n in kept)
        reason = f"none of the scales that keep retention ({names}) gains on half A"
        return ScaleChoice(None, reason, gains)
    reason = (
        f"{len(kept)} of {len(candidates)} scales are shown to keep retention on half A; of these, "
        f"{candidates[best].scale.name} gains most"
    )
    return ScaleChoice(best, reason, gains)
