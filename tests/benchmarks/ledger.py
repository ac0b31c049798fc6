"""Time and peak memory from the journals of two processes to ledger, verdict and report.

    python -m tests.benchmarks.ledger [--quick] [--entries N] [--characters N] [--directory DIR]

Base and adapter on one multiple-choice task, half of the entries each, so that the task is as large
as the ledger. Its prompts are stretches of the Python language reference. A peak is the process's
so far, imports (0.4 GB) included; the journals are written by another process.

Most of the time is judging: a million entries are half a million clusters.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pydoc_data.topics
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from lora_kit.evaluation.assembly import LEDGER, VERDICT, ResultPart, assembled_entries
from lora_kit.evaluation.engine.journal import Journal, Journals
from lora_kit.evaluation.judge import judge
from lora_kit.evaluation.ledger import Entry, Ledger, write_ledger
from lora_kit.evaluation.reporting.report import ReportFacts, write_report
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict_file import SUITES, check_verdict
from lora_kit.runtime.files import write_json
from lora_kit.runtime.machine import machine, peak_memory, versions

PROCESSES = 2
ARMS = ("base", "adapter")
T = TypeVar("T")
BATCH = 500
SUITE = Suite.model_validate(
    {
        "name": "many",
        "role": "retention",
        "tasks": [
            {"name": "quiz", "kind": "multiple_choice", "source": "quiz.jsonl", "margin": 0.02}
        ],
    }
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a rougher figure in two minutes")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--characters", type=int, default=300, help="of a prompt")
    parser.add_argument("--directory", type=Path, help="where there is room for 3 GB")
    arguments = parser.parse_args()
    items = (20_000 if arguments.quick else arguments.entries) // len(ARMS)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as temporary:
        directory = Path(temporary)
        writer = multiprocessing.get_context("spawn").Process(
            target=_write_journals, args=(directory, items, arguments.characters)
        )
        writer.start()
        writer.join()
        stages = _measure(directory, items)
        size = (directory / LEDGER).stat().st_size
    for name, (seconds, peak) in stages.items():
        print(f"{name:20} {seconds:8.1f} s   peak {peak / 1e9:5.2f} GB")
    figures = {
        "entries": len(ARMS) * items,
        "characters": arguments.characters,
        "peak_memory": max(peak for _, peak in stages.values()),
        "ledger_bytes": size,
        "seconds": {name: seconds for name, (seconds, _) in stages.items()},
        "machine": machine(),
        "versions": versions(),
    }
    print(json.dumps(figures))


def _measure(directory: Path, items: int) -> dict[str, tuple[float, int]]:
    """Seconds and the peak so far in bytes, by stage."""
    found: dict[str, tuple[float, int]] = {}

    def timed(name: str, stage: Callable[[], T]) -> T:
        started = time.monotonic()
        made = stage()
        found[name] = time.monotonic() - started, peak_memory()
        return made

    ids = tuple(f"item {number:07}" for number in range(items))
    parts = [ResultPart(f"key of {arm}", "many", "quiz", arm, ids) for arm in ARMS]
    timed("ledger", lambda: _assemble(directory, parts))
    verdict = timed("verdict", lambda: judge(Ledger(directory / LEDGER), [SUITE]))
    write_json(directory / SUITES, [SUITE.model_dump(mode="json")])
    lineage = {"backbone": "", "adapter": "", "suite_digests": {SUITE.name: SUITE.digest}}
    write_json(directory / VERDICT, verdict.to_dict() | lineage)
    facts = ReportFacts("many", {})
    timed("report", lambda: write_report(directory, verdict, Ledger(directory / LEDGER), facts))
    timed("checked again", lambda: check_verdict(directory))
    return found


def _assemble(directory: Path, parts: list[ResultPart]) -> None:
    with closing(Journals(directory, [part.key for part in parts])) as journals:
        write_ledger(directory / LEDGER, assembled_entries(directory, parts, journals))


def _write_journals(directory: Path, items: int, characters: int) -> None:
    """Items in no order, every other one of each process, some of them lost or won."""
    generator = random.Random(0)
    text = " ".join(" ".join(pydoc_data.topics.topics.values()).split())
    journals = [Journal(directory, process) for process in range(PROCESSES)]
    numbers = list(range(items))
    generator.shuffle(numbers)
    for start in range(0, items, BATCH):
        records = [
            (f"key of {entry.arm}", entry)
            for number in numbers[start : start + BATCH]
            for entry in _entries(generator, text, number, characters)
        ]
        journals[start // BATCH % PROCESSES].append(records)


def _entries(
    generator: random.Random, text: str, number: int, characters: int
) -> tuple[Entry, Entry]:
    start = generator.randrange(len(text) - characters)
    choices = tuple(
        text[at : at + 20] for at in (generator.randrange(len(text) - 20) for _ in range(4))
    )
    answer = number % 4
    base = generator.random() < 0.6
    made = []
    for arm, right in zip(ARMS, (base, base ^ (generator.random() < 0.08)), strict=True):
        likelihoods = [-3 - 5 * generator.random() for _ in choices]
        picked = answer if right else (answer + 1) % 4
        likelihoods[picked] = -2.5 * generator.random()
        made.append(
            Entry(
                arm=arm,
                suite="many",
                task="quiz",
                item=f"item {number:07}",
                cluster=f"item {number:07}",
                score=float(right),
                output=choices[picked],
                prompt=text[start : start + characters],
                reference=choices[answer],
                tokens=100,
                seconds=0.01,
                slices={"field": f"field {number % 8}"},
                measures={"accuracy_norm": float(right), "nats": -likelihoods[answer]},
                log_likelihoods=tuple(likelihoods),
                choices=choices,
                answer=answer,
            )
        )
    return made[0], made[1]


if __name__ == "__main__":
    main()
