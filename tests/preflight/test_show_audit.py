"""Printed audits have one line per finding and name the problems."""

import io

from rich.console import Console

from lora_kit.data.audit.findings import (
    Audit,
    BrokenTokens,
    ClassBalance,
    Duplicates,
    Leak,
    Leakage,
    LengthStatistics,
    Shift,
    TokenStatistics,
)
from lora_kit.preflight.show_audit import show_audit


def shown(audit: Audit) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    show_audit(audit, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


TOKENS = TokenStatistics(
    10, 10, 1, 0, LengthStatistics(20, 30, 40, 50, ((32, 9), (64, 1))), BrokenTokens(100, 0)
)


def test_findings_without_problems_take_one_line() -> None:
    fine = Audit(
        duplicates=Duplicates(10, 0, 0),
        leakage=(Leakage("suite", "task", 40, 0, 0, 0, 0),),
        validation=None,
        tokens=TOKENS,
        classes=ClassBalance(),
        shifts=(),
    )
    text = shown(fine)
    assert "none of 40 items found in the training rows" in text
    assert "1 truncated (10.0%)" in text
    assert "≤32: 9, ≤64: 1" in text
    assert len(text.splitlines()) <= 8


def test_problems_are_named_and_texts_are_escaped() -> None:
    leak = Leak("[red]item[/]", "a[0]", "exact", 1.0)
    bad = Audit(
        duplicates=Duplicates(10, 3, 1),
        leakage=(Leakage("[b]suite", "task", 40, 1, 1, 0, 2, (leak,)),),
        validation=Leakage("data.validation", "rows", 5, 0, 0, 0, 0),
        tokens=TOKENS,
        classes=ClassBalance({"[/]spam": 9, "ham": 1}),
        shifts=(Shift("data.validation", 10, 10, 0.97, 0.9, 1.0, 0.001),),
        problems=("data.audit.leakage: [red]item[/] in a[0]",),
        warnings=("the label '[/]spam'",),
    )
    text = shown(bad)
    assert "3 exact (30.0%), 1 near, of 10 rows" in text
    assert "[b]suite/task 2 of 40 (1 exact, 1 near), 2 without a word to search for" in text
    assert "[/]spam 9, ham 1" in text
    assert "a classifier separates them with AUC 0.97 (95% interval 0.90 to 1.00" in text
    assert "refused data.audit.leakage: [red]item[/] in a[0]" in text
    assert "! the label '[/]spam'" in text
