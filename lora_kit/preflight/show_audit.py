"""Print the audit of the training data on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lora_kit.data.audit.findings import Audit, BrokenTokens, Leakage, Shift
from lora_kit.data.audit.label_errors import LabelErrors

# Classes and scripts listed by name.
_LISTED = 6
SUSPECTS = 10
"""Suspected label errors that are printed."""


def show_audit(audit: Audit, console: Console) -> None:
    """Print one line per kind of finding, then warnings, then problems that are refused."""
    console.print(f"[bold]data audit[/] [dim]({audit.seconds:.1f} s)[/]")
    table = Table.grid(padding=(0, 2))
    for name, value in _facts(audit).items():
        table.add_row(f"[dim]{escape(name)}[/]", escape(value))
    console.print(table)
    if audit.label_errors:
        _show_suspects(audit.label_errors, console)
    for warning in audit.warnings:
        console.print(f"[yellow]![/] {escape(warning)}", soft_wrap=True)
    for problem in audit.problems:
        console.print(f"[red]refused[/] {escape(problem)}", soft_wrap=True)


def _facts(audit: Audit) -> dict[str, str]:
    tokens, lengths = audit.tokens, audit.tokens.lengths
    facts = {
        "duplicates": _duplicates(audit),
        "leakage": _leakage(audit.leakage),
        "rows": f"{tokens.rows:,}, {tokens.dropped:,} without supervised tokens "
        f"({tokens.dropped_share:.1%})",
        "examples": f"{tokens.examples:,}, {tokens.truncated:,} truncated "
        f"({tokens.truncated_share:.1%})",
        "lengths": f"median {lengths.p50:,} tokens, 90% ≤ {lengths.p90:,}, 99% ≤ {lengths.p99:,}, "
        f"longest {lengths.longest:,}",
        "examples by length": ", ".join(
            f"≤{upper:,}: {count:,}" for upper, count in lengths.histogram if count
        ),
        "split characters": _broken_tokens(tokens.pieces),
    }
    if audit.validation is not None:
        facts["held-out rows"] = _leakage([audit.validation])
    if audit.classes.counts:
        facts["classes"] = _listed(audit.classes.counts)
    if audit.label_errors:
        facts["label errors"] = _label_errors(audit.label_errors)
    for shift in audit.shifts:
        facts[f"shift to {shift.other}"] = _shift(shift)
    return facts


def _label_errors(found: LabelErrors) -> str:
    done = {"drop": ", which are left out", "weigh_down": ", which are weighed down"}
    unknown = f"; {found.unknown:,} cannot be judged" if found.unknown else ""
    doubt = ", too few to trust the suspects" if found.is_doubtful else ""
    return (
        f"{len(found.suspects):,} of {found.rows:,} labels ({found.share:.1%}) look "
        f"wrong{done.get(found.action, '')}; the probe gives {found.accuracy:.0%} of the rows the "
        f"label that they have{doubt}{unknown}"
    )


def _show_suspects(found: LabelErrors, console: Console) -> None:
    """Print the rows whose label is the least probable."""
    if not found.suspects:
        return
    table = Table("row", "label", "p", "looks like", "p", box=None, padding=(0, 2))
    for one in found.suspects[:SUSPECTS]:
        table.add_row(
            escape(one.origin),
            escape(one.label),
            f"{one.probability:.2f}",
            escape(one.suggestion),
            f"{one.suggestion_probability:.2f}",
        )
    console.print(table)
    if len(found.suspects) > SUSPECTS:
        console.print(f"[dim]{len(found.suspects) - SUSPECTS:,} more: lora-kit plan --json[/]")


def _duplicates(audit: Audit) -> str:
    duplicates = audit.duplicates
    if not duplicates.exact + duplicates.near:
        return "none"
    return (
        f"{duplicates.exact:,} exact ({duplicates.share:.1%}), {duplicates.near:,} near, of "
        f"{duplicates.rows:,} rows"
    )


def _leakage(tasks: Sequence[Leakage]) -> str:
    items = sum(one.items for one in tasks)
    unchecked = sum(one.unchecked for one in tasks)
    left_out = f", {unchecked:,} without a word to search for" if unchecked else ""
    leaky = [one for one in tasks if one.leaked]
    if not leaky:
        return f"none of {items:,} items found in the training rows{left_out}"
    return (
        "; ".join(
            f"{one.suite}/{one.task} {one.leaked:,} of {one.items:,} "
            f"({one.exact:,} exact, {one.near:,} near)"
            for one in leaky
        )
        + left_out
    )


def _broken_tokens(tokens: BrokenTokens) -> str:
    if not tokens.broken:
        return "none"
    scripts = _listed(tokens.scripts)
    return f"{tokens.share:.1%} of the supervised tokens are parts of a character ({scripts})"


def _listed(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:_LISTED])
    return shown if len(counts) <= _LISTED else f"{shown}, {len(counts) - _LISTED:,} more"


def _shift(shift: Shift) -> str:
    interval = f"95% interval {shift.low:.2f} to {shift.high:.2f}"
    compared = f"{shift.rows:,} and {shift.others:,} rows"
    if shift.significant:
        return (
            f"a classifier separates them with AUC {shift.auc:.2f} ({interval}, p "
            f"{shift.p_value:.2g}, {compared})"
        )
    return f"not detected (AUC {shift.auc:.2f}, {interval}, {compared})"
