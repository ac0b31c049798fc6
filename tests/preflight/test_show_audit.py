"""The audit on a terminal says what is fine in a line, and names the rest."""

import io

from rich.console import Console

from lora_kit.data.audit.findings import (
    Audit,
    Classes,
    Duplicates,
    Leak,
    Leakage,
    Lengths,
    Pieces,
    Shift,
    Tokens,
)
from lora_kit.preflight.show_audit import show_audit


def shown(audit: Audit) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    show_audit(audit, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


TOKENS = Tokens(10, 10, 1, 0, Lengths(20, 30, 40, 50, ((32, 9), (64, 1))), Pieces(100, 0))


def test_what_is_fine_takes_a_line() -> None:
    fine = Audit(
        duplicates=Duplicates(10, 0, 0),
        leakage=(Leakage("suite", "task", 40, 0, 0, 0, 0),),
        validation=None,
        tokens=TOKENS,
        classes=Classes(),
        shifts=(),
    )
    text = shown(fine)
    assert "none of 40 items stands in a training row" in text
    assert "1 cut (10.0%)" in text
    assert "≤32: 9, ≤64: 1" in text
    assert len(text.splitlines()) <= 8


def test_what_is_not_is_named_and_no_text_is_markup() -> None:
    leak = Leak("[red]item[/]", "a[0]", "exact", 1.0)
    bad = Audit(
        duplicates=Duplicates(10, 3, 1),
        leakage=(Leakage("[b]suite", "task", 40, 1, 1, 0, 2, (leak,)),),
        validation=Leakage("data.validation", "rows", 5, 0, 0, 0, 0),
        tokens=TOKENS,
        classes=Classes({"[/]spam": 9, "ham": 1}),
        shifts=(Shift("data.validation", 10, 10, 0.97, 0.9, 1.0, 0.001),),
        problems=("data.audit.leakage: [red]item[/] in a[0]",),
        warnings=("the label '[/]spam'",),
    )
    text = shown(bad)
    assert "3 exact (30.0%), 1 near, of 10 rows" in text
    assert "[b]suite/task 2 of 40 (1 exact, 1 near), 2 without a word to look for" in text
    assert "[/]spam 9, ham 1" in text
    assert "a classifier tells them apart with AUC 0.97, 0.90 to 1.00" in text
    assert "refused data.audit.leakage: [red]item[/] in a[0]" in text
    assert "! the label '[/]spam'" in text
