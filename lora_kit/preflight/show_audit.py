"""The audit of the training data on a terminal: what is fine in a line, the rest with places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lora_kit.data.audit.findings import Audit, Leakage, Pieces, Shift

# Classes and scripts that are listed.
_LISTED = 6


def show_audit(audit: Audit, console: Console) -> None:
    """Print what was found: a line each, then what is worth a look, then what is refused."""
    console.print(f"[bold]data audit[/] [dim]({audit.seconds:.1f} s)[/]")
    table = Table.grid(padding=(0, 2))
    for name, value in _facts(audit).items():
        table.add_row(f"[dim]{escape(name)}[/]", escape(value))
    console.print(table)
    for warning in audit.warnings:
        console.print(f"[yellow]![/] {escape(warning)}", soft_wrap=True)
    for problem in audit.problems:
        console.print(f"[red]refused[/] {escape(problem)}", soft_wrap=True)


def _facts(audit: Audit) -> dict[str, str]:
    tokens, lengths = audit.tokens, audit.tokens.lengths
    facts = {
        "duplicates": _duplicates(audit),
        "leakage": _leakage(audit.leakage),
        "rows": f"{tokens.rows:,}, {tokens.truncated:,} cut ({tokens.truncated_share:.1%}), "
        f"{tokens.dropped:,} with nothing to learn ({tokens.dropped_share:.1%})",
        "lengths": f"half up to {lengths.p50:,} tokens, 90% up to {lengths.p90:,}, 99% up to "
        f"{lengths.p99:,}, longest {lengths.longest:,}",
        "buckets": ", ".join(
            f"≤{upper:,}: {count:,}" for upper, count in lengths.histogram if count
        ),
        "characters": _pieces(tokens.pieces),
    }
    if audit.validation is not None:
        facts["held out"] = _leakage([audit.validation])
    if audit.classes.counts:
        facts["classes"] = _listed(audit.classes.counts)
    for shift in audit.shifts:
        facts[f"against {shift.other}"] = _shift(shift)
    return facts


def _duplicates(audit: Audit) -> str:
    found = audit.duplicates
    if not found.exact + found.near:
        return "none"
    return f"{found.exact:,} exact ({found.share:.1%}), {found.near:,} near, of {found.rows:,} rows"


def _leakage(found: Sequence[Leakage]) -> str:
    items = sum(one.items for one in found)
    unchecked = sum(one.unchecked for one in found)
    left_out = f", {unchecked:,} without a word to look for" if unchecked else ""
    leaky = [one for one in found if one.leaked]
    if not leaky:
        return f"none of {items:,} items stands in a training row{left_out}"
    return (
        "; ".join(
            f"{one.suite}/{one.task} {one.leaked:,} of {one.items:,} "
            f"({one.exact:,} exact, {one.near:,} near)"
            for one in leaky
        )
        + left_out
    )


def _pieces(found: Pieces) -> str:
    if not found.broken:
        return "none is broken into bytes"
    return f"{found.share:.1%} of the supervised tokens are parts of one ({_listed(found.scripts)})"


def _listed(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:_LISTED])
    return shown if len(counts) <= _LISTED else f"{shown}, {len(counts) - _LISTED:,} more"


def _shift(shift: Shift) -> str:
    interval = f"AUC {shift.auc:.2f}, {shift.low:.2f} to {shift.high:.2f}"
    compared = f"{shift.rows:,} and {shift.others:,} rows"
    if shift.found:
        return f"a classifier tells them apart with {interval} (p {shift.p_value:.2g}, {compared})"
    return f"a classifier does not tell them apart ({interval}, {compared})"
