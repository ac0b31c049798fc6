"""Result of monitoring a stream."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_kit.monitoring.signals import Signal
from lora_kit.runtime.files import finite
from lora_kit.statistics.decisions import Decision


@dataclass(frozen=True)
class WindowFacts:
    """Texts of a window.

    Attributes:
        number: number of the window, from 1.
        first: origin of the first text.
        last: origin of the last text.
        begins: time of the first text; empty without times.
        ends: time of the last text; empty without times.
        texts: number of texts.
        units: number of texts that count: those of a cluster, and equal ones, count once.
    """

    number: int
    first: str
    last: str
    begins: str
    ends: str
    texts: int
    units: int


@dataclass(frozen=True)
class ForeignText:
    """Text that is unlike the reference.

    Attributes:
        window: number of its window.
        origin: file and line.
        text: the text.
    """

    window: int
    origin: str
    text: str


@dataclass(frozen=True)
class LabelledVerdict:
    """Verdict on the texts that have answers.

    Attributes:
        decision: decision for the adapter against its base.
        items: number of texts with an answer.
        report: path of the report.
    """

    decision: Decision
    items: int
    report: str


@dataclass(frozen=True)
class Monitoring:
    """Stream of texts against what an adapter was trained and judged on.

    Attributes:
        target: run or release.
        source: file of the texts.
        alpha: largest probability of a false alarm, of all signals and windows together.
        limit: log of the evidence at which a signal alarms, in nats.
        reference: parts of the reference.
        notes: parts that were left out, with the reason.
        windows: windows.
        waiting: texts behind the last window.
        signals: signals.
        foreign: texts that are most foreign, of the first window with an alarm, or of all windows.
        verdict: verdict on the texts with answers; `None` if it was not asked for.
    """

    target: Path
    source: Path
    alpha: float
    limit: float
    reference: tuple[str, ...]
    notes: tuple[str, ...]
    windows: tuple[WindowFacts, ...]
    waiting: int
    signals: tuple[Signal, ...]
    foreign: tuple[ForeignText, ...]
    verdict: LabelledVerdict | None = None

    @property
    def alarms(self) -> dict[str, int]:
        """Number of the first window of each signal's alarm, by the name of the signal."""
        found = {one.name: one.alarm(self.limit) for one in self.signals}
        return {name: window for name, window in found.items() if window is not None}

    @property
    def fails(self) -> bool:
        """True if a signal alarms, or the verdict is FAIL."""
        return bool(self.alarms) or (self.verdict is not None and self.verdict.decision == "FAIL")

    @property
    def sentence(self) -> str:
        """Summary of the alarms in a sentence."""
        count = f"{len(self.windows)} window{'s' if len(self.windows) > 1 else ''}"
        if not self.alarms:
            return (
                f"No alarm in {count}: the texts do not differ from the reference by more than "
                "chance explains."
            )
        parts = [
            f"{one.title[:1].lower()}{one.title[1:]} (window {self.alarms[one.name]} of "
            f"{len(self.windows)})"
            for one in self.signals
            if one.name in self.alarms
        ]
        return f"Alarm: the texts differ from the reference in {' and '.join(parts)}."

    def p_value(self, signal: Signal) -> float:
        """Return the p-value of a signal over all windows, after the correction for signals."""
        return min(1.0, len(self.signals) * math.exp(-signal.strongest))

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values; evidence is a log to the base 10."""
        value: dict[str, Any] = finite(
            {
                "target": str(self.target),
                "texts": str(self.source),
                "alarm": bool(self.alarms),
                "alpha": self.alpha,
                "limit": _log10(self.limit),
                "reference": list(self.reference),
                "notes": list(self.notes),
                "windows": [asdict(one) for one in self.windows],
                "waiting": self.waiting,
                "signals": [self._signal(one) for one in self.signals],
                "foreign": [asdict(one) for one in self.foreign],
                "verdict": asdict(self.verdict) if self.verdict else None,
            }
        )
        return value

    def _signal(self, signal: Signal) -> dict[str, Any]:
        return {
            "name": signal.name,
            "title": signal.title,
            "unit": signal.unit,
            "alarm": self.alarms.get(signal.name),
            "p_value": self.p_value(signal),
            "reference": signal.reference,
            "values": list(signal.values),
            "evidence": [_log10(one.evidence) for one in signal.windows],
            "above": [one.above for one in signal.windows],
        }


def _log10(nats: float) -> float:
    return nats / math.log(10)
