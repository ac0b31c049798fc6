"""What is past a limit, and what is probably not meant, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lora_kit.data.audit.findings import Audit, Leakage
from lora_kit.recipe.data import AuditSpec

# Of the supervised tokens. Of a sentence each, SmolLM2's tokenizer breaks 0% in French, 6% in
# Russian, 11% in Greek, 8% in English with an emoji; 42% in Arabic, 76% to 94% in Hindi, Japanese,
# Thai and Chinese, where a row costs two to four times the tokens and a wrong one makes no
# character at all.
BROKEN_SHARE = 0.15
# The smallest class over the largest.
CLASS_RATIO = 0.1
# Of the rows, exact and near ones; crawled sets have 3 to 14% (Lee et al. 2021, table 2).
DUPLICATE_SHARE = 0.05
# The classifier puts four pairs of five in the right order.
SHIFT_AUC = 0.8
_NAMED = 3


def problems(audit: Audit, limits: AuditSpec) -> tuple[str, ...]:
    """What the limits of `data.audit` do not let through: field, found, limit, places, remedy."""
    return (
        *_duplicates(audit, limits.duplicates),
        *_leakage(audit, limits.leakage),
        *_truncated(audit, limits.truncated),
    )


def _duplicates(audit: Audit, limit: float) -> Iterator[str]:
    found = audit.duplicates
    if found.share > limit:
        twins = [f"{t.origin} is {t.earlier}" for t in found.examples if t.similarity == 1]
        yield (
            f"data.audit.duplicates: {found.exact:,} of {found.rows:,} rows ({found.share:.1%}) "
            f"stand there before (allowed: {limit:.1%}), such as {_some(twins)}. Take them out of "
            "the source, lower the weight or the rows of a mixture that repeats it, or raise "
            "data.audit.duplicates"
        )


def _leakage(audit: Audit, limit: float) -> Iterator[str]:
    for found in audit.leakage:
        if found.share > limit:
            yield (
                f"data.audit.leakage: {found.leaked:,} of {found.items:,} items "
                f"({found.share:.1%}) of {found.suite}/{found.task} stand with their answer in a "
                f"training row (allowed: {limit:.1%}), such as {_some(_leaks(found))}: what is "
                "measured there would be memory. Take these rows out of data.train, or these items "
                "out of the suite; raise data.audit.leakage only if you know why they are there"
            )


def _truncated(audit: Audit, limit: float) -> Iterator[str]:
    found = audit.tokens
    if found.truncated_share > limit:
        yield (
            f"data.audit.truncated: {found.truncated:,} of {found.rows:,} rows "
            f"({found.truncated_share:.1%}) are cut at data.max_length (allowed: {limit:.1%}), "
            f"such as {_some(found.truncated_examples)}. Raise data.max_length, shorten the rows, "
            "or raise data.audit.truncated"
        )


def warnings(audit: Audit, limits: AuditSpec) -> tuple[str, ...]:
    """What is not refused, and worth a look all the same."""
    return (
        *_warned_duplicates(audit),
        *_warned_leakage(audit, limits.leakage),
        *_warned_classes(audit),
        *_warned_pieces(audit),
        *_warned_shifts(audit),
    )


def _warned_duplicates(audit: Audit) -> Iterator[str]:
    found = audit.duplicates
    share = (found.exact + found.near) / max(found.rows, 1)
    if share > DUPLICATE_SHARE:
        twins = [f"{twin.origin} and {twin.earlier}" for twin in found.examples]
        yield (
            f"{share:.1%} of the rows stand there before ({found.exact:,} exactly, {found.near:,} "
            f"nearly), such as {_some(twins)}; they count as many times as they stand there"
        )


def _warned_leakage(audit: Audit, limit: float) -> Iterator[str]:
    for found in audit.leakage:
        if 0 < found.share <= limit:
            yield (
                f"{found.leaked:,} of {found.items:,} items of {found.suite}/{found.task} stand "
                f"with their answer in a training row, such as {_some(_leaks(found))}"
            )
        if found.prompts:
            asked = [f"{e.item} in {e.origin}" for e in found.examples if e.kind == "prompt"]
            yield (
                f"{found.prompts:,} of {found.items:,} prompts of {found.suite}/{found.task} stand "
                f"in a training row without their answer{_such_as(asked)}"
            )
    found_held_out = audit.validation
    if found_held_out is not None and found_held_out.leaked:
        yield _overlap(found_held_out)


def _overlap(found: Leakage) -> str:
    return (
        f"{found.leaked:,} of {found.items:,} validation rows are training rows too, such as "
        f"{_some(_leaks(found))}; the validation loss will look too good"
    )


def _warned_classes(audit: Audit) -> Iterator[str]:
    counts = audit.classes.counts
    if counts and audit.classes.ratio < CLASS_RATIO:
        small = min(counts, key=lambda label: counts[label])
        large = max(counts, key=lambda label: counts[label])
        yield (
            f"the label {small!r} has {counts[small]:,} rows, {large!r} has {counts[large]:,}; a "
            "model that never says the first is right almost always. Judge by macro_f1, or add "
            "rows of the small class"
        )


def _warned_pieces(audit: Audit) -> Iterator[str]:
    found = audit.tokens.pieces
    if found.share > BROKEN_SHARE:
        scripts = ", ".join(f"{name} {count:,}" for name, count in list(found.scripts.items())[:3])
        yield (
            f"{found.share:.1%} of the supervised tokens are parts of a character ({scripts}), "
            f"such as in {_some(found.examples)}: the tokenizer was not made for this script. Take "
            "a backbone whose tokenizer was, or expect longer rows and broken characters"
        )


def _warned_shifts(audit: Audit) -> Iterator[str]:
    for shift in audit.shifts:
        if shift.found and shift.auc >= SHIFT_AUC:
            yield (
                f"a classifier tells training rows from {shift.other} with AUC {shift.auc:.2f} "
                f"({shift.low:.2f} to {shift.high:.2f}): they are not of one kind"
            )


def _leaks(found: Leakage) -> list[str]:
    return [f"{leak.item} in {leak.origin}" for leak in found.examples if leak.kind != "prompt"]


def _some(places: Sequence[str]) -> str:
    return "; ".join(places[:_NAMED])


def _such_as(places: Sequence[str]) -> str:
    return f", such as {_some(places)}" if places else ""
