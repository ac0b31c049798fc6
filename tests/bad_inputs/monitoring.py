"""Streams of texts: options, files, times and references of `monitor`."""

import json
from collections.abc import Sequence
from typing import Any

from tests.bad_inputs.case import REFUSED, Case, Place
from tests.monitoring.judged import sentences, write_judged_run

TEXTS = tuple({"prompt": text} for text in sentences(30, 9))
TIMED = tuple(row | {"time": f"2026-11-{n + 1:02}"} for n, row in enumerate(TEXTS))
TIME = "not a date in ISO 8601 and not a number"
WINDOW = ("--window", "10")


def monitored(
    name: str,
    rows: Sequence[Any],
    options: Sequence[str],
    *says: str,
    file: str = "texts.jsonl",
    status: int = REFUSED,
) -> Case:
    """Return the case of a stream; a row that is a text is written as it is."""

    def write(place: Place) -> list[str]:
        run = write_judged_run(place.folder, rows=60)
        texts = place.folder / file
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        texts.write_text("".join(f"{line}\n" for line in lines))
        output = ["--output", str(place.folder / "monitor")]
        given = [option.replace("{folder}", str(place.folder)) for option in options]
        return ["monitor", str(run), str(texts), *output, *given]

    return Case(f"monitor: {name}", write, says, status)


def _of_target(place: Place) -> list[str]:
    (place.folder / "texts.jsonl").write_text('{"text": "Who?"}\n')
    return ["monitor", str(place.folder), str(place.folder / "texts.jsonl")]


def _not_judged(place: Place) -> list[str]:
    run = write_judged_run(place.folder, rows=60)
    (run / "evaluation" / "ledger.parquet").unlink()
    return ["monitor", str(run), str(place.folder / "training.jsonl")]


CASES = (
    Case("monitor: a folder that is no run", _of_target, ("neither a run", "nor a release")),
    Case("monitor: a run without a ledger", _not_judged, ("was not judged", "lora-kit evaluate")),
    monitored("an empty file", (), WINDOW, "texts.jsonl"),
    monitored("too few texts", TEXTS, (), "--window: too few texts for one window of 100 (got 30)"),
    monitored("a tiny window", TEXTS, ("--window", "3"), "--window: too few texts for a test"),
    monitored("broken JSON", (*TEXTS, "{"), WINDOW, "texts.jsonl:31"),
    monitored("no text", (*TEXTS, {"prompt": " "}), WINDOW, "texts.jsonl:31", "prompt"),
    monitored("no known column", (*TEXTS, {"say": "a"}), WINDOW, "texts.jsonl:31: no known format"),
    monitored("no such file", TEXTS, ("--reference", "{folder}/no.jsonl", *WINDOW), "--reference"),
    monitored(
        "a small reference",
        TEXTS,
        ("--reference", "{folder}/texts.jsonl", *WINDOW),
        "--reference: too few texts to compare with, at least 40 (got 30 texts",
    ),
    monitored(
        "an unreadable time",
        (*TIMED, TEXTS[0] | {"time": "yesterday"}),
        WINDOW,
        f"texts.jsonl:31: time: {TIME} (got 'yesterday')",
    ),
    monitored("a missing time", (*TIMED, TEXTS[0]), WINDOW, "texts.jsonl:31: time: missing"),
    monitored(
        "dates and numbers",
        (*TIMED, TEXTS[0] | {"time": 3}),
        WINDOW,
        "texts.jsonl:31: time: dates and numbers are mixed",
    ),
    monitored("since when?", TIMED, ("--since", "May", *WINDOW), f"--since: {TIME} (got 'May')"),
    monitored("since, by a number", TIMED, ("--since", "3", *WINDOW), "the texts are dates"),
    monitored("since, without times", TEXTS, ("--since", "2026-01-01"), "--since: the texts have"),
    monitored("since the future", TIMED, ("--since", "2027-01-01"), "--since: all texts are older"),
    monitored("every month", TIMED, ("--every", "month"), "--every: not a duration (got 'month')"),
    monitored("every, without times", TEXTS, ("--every", "1d"), "--every: the texts have no field"),
    monitored("every year", TIMED, ("--every", "52w"), "--every: no span of time is over yet"),
    monitored("two windows", TIMED, ("--every", "1d", *WINDOW), "--every: cuts windows by time"),
    monitored(
        "no such cluster", TEXTS, ("--cluster", "user"), "texts.jsonl:1: --cluster: no field"
    ),
    monitored("an odd level", TEXTS, ("--alpha", "0.7", *WINDOW), "--alpha: a probability below"),
    monitored("no level", TEXTS, ("--alpha", "nan", *WINDOW), "--alpha: a probability below"),
    monitored(
        "a page on a file", TEXTS, ("--output", "{folder}/texts.jsonl", *WINDOW), "--output: a file"
    ),
    monitored("a model that is gone", TEXTS, ("--model", *WINDOW), "nowhere"),
)
