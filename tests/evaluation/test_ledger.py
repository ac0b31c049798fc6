"""Ledgers that are larger than memory, and the journals that they are written from."""

import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lora_kit.evaluation import ledger as module
from lora_kit.evaluation.assembly import (
    ResultPart,
    assembled_entries,
    insert_part,
    refuse_separate_directories,
)
from lora_kit.evaluation.engine.journal import REUSED, Journal, Journals, journal_path
from lora_kit.evaluation.ledger import LEDGER_SCHEMA, Entry, Ledger, read_ledger, write_ledger
from lora_kit.evaluation.reporting import flips as flips_module
from lora_kit.evaluation.reporting.entry_store import EntryStore
from lora_kit.evaluation.reporting.report import ReportFacts
from lora_kit.runtime.errors import EvaluationError
from tests.evaluation.in_memory import find_flips, judge, write_flips, write_report
from tests.evaluation.reports import BROKE, HELPED, KNOWLEDGE, everything

PARTS = [ResultPart(f"key of {arm}", "s", "t", arm, ("a", "b", "c")) for arm in ("base", "adapter")]


def entry(arm: str, item: str, score: float | None = 1.0) -> Entry:
    return Entry(arm, "s", "t", item, item, score, f"{arm} {item}", "asked", "right", 3, 0.5)


def journal_of(directory: Path, process: int | str, records: list[tuple[str, str, float]]) -> None:
    journal = Journal(directory, process)
    journal.append([(f"key of {arm}", entry(arm, item, score)) for arm, item, score in records])


def read(directory: Path, parts: list[ResultPart] = PARTS) -> list[Entry]:
    with closing(Journals(directory, [part.key for part in parts])) as journals:
        return list(assembled_entries(directory, parts, journals))


def test_journals_of_two_processes_become_one_ledger_in_order(tmp_path: Path) -> None:
    journal_of(tmp_path, 1, [("adapter", "c", 0.1), ("base", "a", 0.2), ("adapter", "a", 0.3)])
    journal_of(tmp_path, 0, [("base", "c", 0.4), ("base", "b", 0.5), ("adapter", "b", 0.6)])
    Journal(tmp_path, 0).append([("key of another adapter", entry("adapter", "a", 0.9))])
    with journal_path(tmp_path, 1).open("a") as stream:
        stream.write('{"key": "cut in the mid')
    found = [(one.arm, one.item, one.score) for one in read(tmp_path)]
    assert found == [
        *(("base", "a", 0.2), ("base", "b", 0.5), ("base", "c", 0.4)),
        *(("adapter", "a", 0.3), ("adapter", "b", 0.6), ("adapter", "c", 0.1)),
    ]


def test_what_is_measured_again_replaces_what_was_kept(tmp_path: Path) -> None:
    both = [(arm, item, 0.0) for arm in ("base", "adapter") for item in "abc"]
    journal_of(tmp_path, REUSED, both)
    journal_of(tmp_path, 0, [("base", "b", 0.5), ("base", "b", 0.7)])
    assert [one.score for one in read(tmp_path)] == [0.0, 0.7, 0.0, 0.0, 0.0, 0.0]


def test_a_process_whose_journal_is_elsewhere_is_refused(tmp_path: Path) -> None:
    journal_of(
        tmp_path / "here", 0, [(arm, item, 1.0) for arm in ("base", "adapter") for item in "ab"]
    )
    journal_of(tmp_path / "there", 1, [(arm, "c", 1.0) for arm in ("base", "adapter")])
    with pytest.raises(
        EvaluationError,
        match=r"not all processes write .*2 of 6 results that are in no journal",
    ):
        read(tmp_path / "here")
    with pytest.raises(EvaluationError, match=r"no journal of process 1\)\. Fix: give an output"):
        refuse_separate_directories(tmp_path / "here", 2)
    Journal(tmp_path / "here", 1).open()
    refuse_separate_directories(tmp_path / "here", 2)


LAUNCHED = """
import sys
from pathlib import Path
from lora_kit.runtime.console import Meter
from lora_kit.runtime.errors import EvaluationError
from lora_kit.evaluation.assembly import refuse_separate_directories
from lora_kit.evaluation.engine.journal import Journal
from lora_kit.evaluation.engine.progress import shared_progress
from lora_kit.runtime.processes import broadcast_from_main, process_state

state = process_state()
rank = state.process_index
for _ in range(2):
    shown = Meter("evaluating", 12, None)
    with shared_progress(shown) as progress:
        for _ in range(2):
            progress.advance(3, "", 10)
    print(f"done {rank} {shown._done:.0f} {shown._tokens}\\n", end="", flush=True)
    state.wait_for_everyone()
place = Path(sys.argv[1]) / f"of {rank}"
Journal(place, rank).open()
state.wait_for_everyone()
print(f"made {rank} {broadcast_from_main(lambda: (rank, 'x'))}\\n", end="", flush=True)
try:
    broadcast_from_main(lambda: refuse_separate_directories(place, state.num_processes))
except EvaluationError as error:
    advice = str(error).rpartition("Fix: ")[2]
    print(f"refused {rank} {advice}\\n", end="", flush=True)
state.destroy_process_group()
"""


@pytest.mark.slow  # two processes that each import torch
def test_two_processes_count_together_and_refuse_together(tmp_path: Path) -> None:
    (tmp_path / "launched.py").write_text(LAUNCHED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", str(tmp_path / "launched.py"), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = sorted(line for line in done.stdout.splitlines() if line)
    # The bar of the main process ends at the total of both processes, in both evaluations.
    assert lines.count("done 0 12 40") == 2
    assert [line for line in lines if line.startswith("made")] == [
        "made 0 (0, 'x')",
        "made 1 (0, 'x')",
    ]
    refused = [line for line in lines if line.startswith("refused")]
    assert refused == [
        f"refused {n} give an output directory that all machines share" for n in (0, 1)
    ]


@pytest.mark.parametrize("rows", [5, 1_000])
def test_a_ledger_in_groups_is_judged_and_reported_as_its_entries_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(module, "GROUP_ROWS", rows)
    entries, suites = everything()
    random.Random(0).shuffle(entries)
    write_ledger(tmp_path / "ledger.parquet", entries)
    ledger = Ledger(tmp_path / "ledger.parquet")
    assert read_ledger(tmp_path / "ledger.parquet") == entries
    verdict = judge(ledger, suites)
    assert verdict == judge(entries, suites)
    for name, results in (("listed", entries), ("ledger", ledger)):
        write_report(tmp_path / name, verdict, results, ReportFacts("t", {}))
    for path in (tmp_path / "listed").iterdir():
        assert path.read_bytes() == (tmp_path / "ledger" / path.name).read_bytes()
    assert sum(ledger.rows_by_arm().values()) == len(entries)


def test_texts_that_nobody_asks_for_are_not_read(tmp_path: Path) -> None:
    write_ledger(tmp_path / "l", [replace(entry("base", "a"), choices=("x", "y", "z"))])
    ledger = Ledger(tmp_path / "l")
    light = ledger.arms("s", "t")["base"]["a"]
    assert (light.prompt, light.output, light.reference, light.choices) == ("", "", "", ("",) * 3)
    labelled = ledger.arms("s", "t", ["output", "reference"])["base"]["a"]
    assert (labelled.prompt, labelled.output, labelled.reference) == ("", "base a", "right")
    assert ledger.arms("s", "other") == {}
    assert ledger.has_outputs("s", "t", ["base"])
    assert not ledger.has_outputs("s", "t", ["adapter"])


def test_long_texts_make_smaller_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_CHARACTERS", 1_000)
    rows = [replace(entry("base", f"{n}"), prompt="x" * 400) for n in range(9)]
    write_ledger(tmp_path / "l", rows)
    assert Ledger(tmp_path / "l")._file.num_row_groups == 3


def test_memory_does_not_grow_with_the_length_of_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GROUP_CHARACTERS", 500_000)
    items = tuple(f"{n:04}" for n in range(300))
    parts = [
        ResultPart(f"key of {arm}", "a-retention", "knowledge", arm, items)
        for arm in ("base", "adapter")
    ]
    for part in parts:
        rows = [entry(part.arm, item, float(part.arm == "base" or item > "0100")) for item in items]
        rows = [replace(one, suite=part.suite, task=part.task, prompt="x" * 40_000) for one in rows]
        Journal(tmp_path, part.arm).append([(part.key, one) for one in rows])
    del rows
    tracemalloc.start()
    with closing(Journals(tmp_path, [part.key for part in parts])) as journals:
        write_ledger(tmp_path / "l", assembled_entries(tmp_path, parts, journals))
    ledger = Ledger(tmp_path / "l")
    verdict = judge(ledger, [KNOWLEDGE])
    assert write_flips(tmp_path / "flips.jsonl", ledger, verdict) == 101
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The texts have 24 million characters.
    assert verdict.suites[0].tasks[0].lost == 101
    assert peak < 8e6


def test_the_columns_are_the_fields_in_their_order() -> None:
    assert list(asdict(entry("base", "a"))) == LEDGER_SCHEMA.names


def test_of_very_many_flips_the_first_are_shown_and_all_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = HELPED + BROKE
    verdict = judge(rows, [KNOWLEDGE])
    (all_of_them,) = find_flips(rows, verdict)
    monkeypatch.setattr(flips_module, "MAX_SHOWN", 7)
    (few,) = find_flips(rows, verdict)
    assert few.lost == all_of_them.lost[:7]
    assert few.lost_items == len(all_of_them.lost) == 30
    assert write_flips(tmp_path / "flips.jsonl", rows, verdict) == 30
    write_report(tmp_path, verdict, rows, ReportFacts("t", {}))
    page = (tmp_path / "report.html").read_text()
    assert "30 lost <span>base correct, adapter wrong, first 7 shown</span>" in page


def test_a_shelf_gives_back_in_any_order(tmp_path: Path) -> None:
    with closing(EntryStore(tmp_path, 3)) as shelf:
        for number, item in ((2, "c"), (0, "a"), (1, "b \ud800\u2028")):
            shelf.put(number, entry("base", item, None))
        assert [shelf.get(n).item for n in range(3)] == ["a", "b \ud800\u2028", "c"]
    assert list(tmp_path.iterdir()) == []


def test_another_arm_comes_behind_its_task() -> None:
    more = ResultPart("k", "s", "t", "retrieval", ())
    other = ResultPart("o", "s", "u", "base", ())
    assert insert_part([*PARTS, other], more) == [*PARTS, more, other]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"PAR1 no ledger"), "cannot be read as a ledger"),
        (lambda path: path.unlink(), "cannot be read as a ledger"),
    ],
)
def test_a_file_that_is_none_is_refused(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    write_ledger(tmp_path / "l", [entry("base", "a")])
    spoil(tmp_path / "l")
    with pytest.raises(EvaluationError, match=message):
        Ledger(tmp_path / "l")


def test_a_journal_cut_off_anywhere_goes_on(tmp_path: Path) -> None:
    path = journal_path(tmp_path, 0)
    for cut in ("", "x", "x" * 200_000):
        journal_of(tmp_path, 0, [("base", "a", 1.0)])
        whole = path.read_bytes()
        path.write_bytes(whole + cut.encode())
        Journal(tmp_path, 0)
        assert path.read_bytes() == whole
    path.write_bytes(b"y" * 200_000)
    Journal(tmp_path, 0)
    assert path.read_bytes() == b""
