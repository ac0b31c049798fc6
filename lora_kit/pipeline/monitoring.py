"""Run or release, and texts that it meets -> alarms, and a verdict where texts have answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_kit.monitoring.page import write_page
from lora_kit.monitoring.reference import judged_entries, judged_texts, read_reference
from lora_kit.monitoring.result import ForeignText, LabelledVerdict, Monitoring, WindowFacts
from lora_kit.monitoring.signals import WORDS, Signal, alarm_limit, text_signals
from lora_kit.monitoring.target import MonitoredAdapter, open_target
from lora_kit.monitoring.texts import StreamText, parse_duration, read_texts, texts_since
from lora_kit.monitoring.windows import WINDOW, Window, windows_of_texts, windows_of_time
from lora_kit.pipeline.monitored_model import MonitoredModel
from lora_kit.recipe.objective import FORMATS_OF
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import write_json

PAGE, RECORD = "monitor.html", "monitor.json"
MOST_FOREIGN = 20
"""Texts that are shown."""


@dataclass(frozen=True)
class MonitorRequest:
    """Stream to monitor.

    Attributes:
        target: run or release.
        texts: file of the texts.
        window: texts of a window; `None` for the default.
        every: span of time of a window, such as `1d`, in place of a number of texts.
        since: time before which texts are left out.
        cluster: field whose value is shared by texts that are not independent.
        reference: file of texts to compare with, in place of those of the target.
        alpha: largest probability of a false alarm, of all signals and windows together.
        model: if true, load the model and measure the texts with it.
        output: directory of page and record.
    """

    target: Path
    texts: Path
    window: int | None = None
    every: str | None = None
    since: str | None = None
    cluster: str | None = None
    reference: Path | None = None
    alpha: float = 0.05
    model: bool = False
    output: Path = Path("monitor")


def monitor(request: MonitorRequest) -> Monitoring:
    """Compare a stream of texts with what an adapter was trained and judged on; write the page.

    Raises:
        LoraKitError: if an option or a file is invalid, or there are too few texts.
    """
    _require_options(request)
    target = open_target(request.target)
    formats = FORMATS_OF.get(target.recipe.training.objective, ())
    stream = read_texts(request.texts, "TEXTS", request.cluster, formats)
    if request.since is not None:
        stream = texts_since(stream, request.since)
    windows = _cut(request, stream)
    reference = read_reference(target, request.reference, request.cluster)
    signals = text_signals(reference.texts, stream, windows)
    notes, verdict = list(reference.notes), None
    answered = sum(one.has_answer for one in stream)
    if request.model:
        more, verdict, left_out = _with_model(target, stream, windows, request.output)
        signals += more
        notes += left_out
    if answered and target.recipe.training.objective == "mlm":
        notes.append(
            f"{answered:,} texts have an answer, by which no masked language model is judged."
        )
    elif answered and not request.model:
        notes.append(
            f"{answered:,} texts have an answer: with --model, the adapter is judged on them."
        )
    limit = alarm_limit(request.alpha, len(signals))
    found = Monitoring(
        target=request.target,
        source=request.texts,
        alpha=request.alpha,
        limit=limit,
        reference=reference.parts,
        notes=tuple(notes),
        windows=_facts(stream, windows, signals[0]),
        waiting=len(stream) - windows[-1].end,
        signals=tuple(signals),
        foreign=_foreign(stream, signals, limit),
        verdict=verdict,
    )
    request.output.mkdir(parents=True, exist_ok=True)
    write_json(request.output / RECORD, found.to_dict())
    write_page(request.output / PAGE, found)
    return found


def _require_options(request: MonitorRequest) -> None:
    """Refuse options that are invalid, or would have no effect.

    Raises:
        LoraKitError: naming the option.
    """
    if not 0 < request.alpha < 0.5:
        raise EvaluationError(
            f"--alpha: a probability below 0.5 (got {request.alpha}). Fix: set 0.05, for example"
        )
    if request.every is not None and request.window is not None:
        raise EvaluationError(
            f"--every: cuts windows by time, so that --window would have no effect (got "
            f"{request.every} and {request.window}). Fix: drop one of them"
        )
    if request.output.exists() and not request.output.is_dir():
        raise EvaluationError(
            f"--output: a file (got {request.output}). Fix: name a directory, such as monitor"
        )
    if request.every is not None:
        parse_duration(request.every)


def _cut(request: MonitorRequest, stream: Sequence[StreamText]) -> list[Window]:
    """Cut a stream into windows of a span of time, or of a number of texts."""
    if request.every is not None:
        return windows_of_time(stream, parse_duration(request.every))
    return windows_of_texts(stream, WINDOW if request.window is None else request.window)


def _with_model(
    target: MonitoredAdapter, stream: Sequence[StreamText], windows: Sequence[Window], output: Path
) -> tuple[list[Signal], LabelledVerdict | None, list[str]]:
    """Return the signals of the model, the verdict on texts with answers, and what is left out."""
    model = MonitoredModel.open(target)
    signals, notes = model.signals(stream, windows, judged_entries(target), judged_texts(target))
    verdict = model.judge(stream, output / "verdict")
    return signals, verdict, notes


def _facts(
    stream: Sequence[StreamText], windows: Sequence[Window], signal: Signal
) -> tuple[WindowFacts, ...]:
    facts = []
    for number, (window, tested) in enumerate(zip(windows, signal.windows, strict=True), 1):
        first, last = stream[window.start], stream[window.end - 1]
        facts.append(
            WindowFacts(
                number,
                first.origin,
                last.origin,
                first.time.written if first.time else "",
                last.time.written if last.time else "",
                window.end - window.start,
                tested.units,
            )
        )
    return tuple(facts)


def _foreign(
    stream: Sequence[StreamText], signals: Sequence[Signal], limit: float
) -> tuple[ForeignText, ...]:
    """Return the most foreign texts by their words, in turn of the windows, most foreign first."""
    words = next(one for one in signals if one.name == WORDS)
    alarms = [alarm for one in signals if (alarm := one.alarm(limit)) is not None]
    numbers = [min(alarms)] if alarms else range(1, len(words.windows) + 1)
    by_window = {number: words.windows[number - 1].foreign for number in numbers}
    ranked = sorted(
        (place / len(texts), number, text)
        for number, texts in by_window.items()
        for place, text in enumerate(texts)
    )
    return tuple(
        ForeignText(number, stream[text].origin, stream[text].text)
        for _, number, text in ranked[:MOST_FOREIGN]
    )
