"""Messages about an audit: exceeded limits, and findings that are probably not intended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lora_kit.data.audit.findings import Audit, Leakage
from lora_kit.data.audit.item import VALIDATION
from lora_kit.recipe.data import AuditSpec

# Fraction of the supervised tokens. Measured on one sentence per language, SmolLM2's tokenizer
# breaks 0% in French, 6% in Russian, 11% in Greek, 8% in English with an emoji; 42% in Arabic, 76%
# to 94% in Hindi, Japanese, Thai and Chinese, where a row costs two to four times the tokens and
# one wrong token gives no valid character.
BROKEN_SHARE = 0.15
# Smallest class divided by the largest.
CLASS_RATIO = 0.1
# Fraction of the rows, exact and near duplicates; crawled data sets have 3 to 14% (Lee et al. 2021,
# table 2).
DUPLICATE_SHARE = 0.05
# At this AUC the classifier orders four of five pairs correctly.
SHIFT_AUC = 0.8
# Examples named in a message.
_MAX_NAMED = 3


def problems(audit: Audit, limits: AuditSpec) -> tuple[str, ...]:
    """Return one error message per exceeded limit of `data.audit`."""
    return (
        *_duplicates(audit, limits.duplicates),
        *_leakage(audit, limits.leakage),
        *_truncated(audit, limits.truncated),
    )


def _duplicates(audit: Audit, limit: float) -> Iterator[str]:
    duplicates = audit.duplicates
    if duplicates.share > limit:
        pairs = [
            f"{pair.origin} is {pair.earlier}"
            for pair in duplicates.examples
            if pair.similarity == 1
        ]
        yield (
            f"data.audit.duplicates: {duplicates.exact:,} of {duplicates.rows:,} rows "
            f"({duplicates.share:.1%}) are duplicates (allowed: {limit:.1%}), such as "
            f"{_some(pairs)}. Fix: remove them, lower the weight or the rows of a mixture that "
            "repeats the source, or raise data.audit.duplicates"
        )


def _leakage(audit: Audit, limit: float) -> Iterator[str]:
    for leakage in audit.leakage:
        if leakage.share > limit:
            yield (
                f"data.audit.leakage: {leakage.leaked:,} of {leakage.items:,} items "
                f"({leakage.share:.1%}) of {leakage.suite}/{leakage.task} are in training rows "
                f"with their answer (allowed: {limit:.1%}), such as {_some(_leaks(leakage))}; "
                "scores would measure memorization. Fix: remove these rows from data.train, or "
                "these items from the suite; raise data.audit.leakage only if the overlap is "
                "intended"
            )


def _truncated(audit: Audit, limit: float) -> Iterator[str]:
    tokens = audit.tokens
    if tokens.truncated_share > limit:
        yield (
            f"data.audit.truncated: {tokens.truncated:,} of {tokens.examples:,} examples "
            f"({tokens.truncated_share:.1%}) are truncated at data.max_length (allowed: "
            f"{limit:.1%}), such as {_some(tokens.truncated_examples)}. Fix: raise "
            "data.max_length, shorten the rows, or raise data.audit.truncated"
        )


def warnings(audit: Audit, limits: AuditSpec) -> tuple[str, ...]:
    """Return one warning per finding that is probably not intended but exceeds no limit."""
    return (
        *_warned_duplicates(audit),
        *_warned_leakage(audit, limits.leakage),
        *_warned_groups(audit),
        *_warned_classes(audit),
        *_warned_pieces(audit),
        *_warned_shifts(audit),
    )


def _warned_duplicates(audit: Audit) -> Iterator[str]:
    duplicates = audit.duplicates
    share = (duplicates.exact + duplicates.near) / max(duplicates.rows, 1)
    if share > DUPLICATE_SHARE:
        pairs = [f"{pair.origin} and {pair.earlier}" for pair in duplicates.examples]
        yield (
            f"{share:.1%} of the rows are duplicates ({duplicates.exact:,} exact, "
            f"{duplicates.near:,} near), such as {_some(pairs)}; each copy is trained on. Remove "
            "them from the source"
        )


def _warned_leakage(audit: Audit, limit: float) -> Iterator[str]:
    for leakage in audit.leakage:
        if 0 < leakage.share <= limit:
            yield (
                f"{leakage.leaked:,} of {leakage.items:,} items of {leakage.suite}/{leakage.task} "
                f"are in training rows with their answer, such as {_some(_leaks(leakage))}; their "
                "scores measure memorization. Remove these rows from data.train"
            )
        if leakage.prompts:
            prompts = [f"{e.item} in {e.origin}" for e in leakage.examples if e.kind == "prompt"]
            such_as = f", such as {_some(prompts)}" if prompts else ""
            yield (
                f"{leakage.prompts:,} of {leakage.items:,} prompts of "
                f"{leakage.suite}/{leakage.task} are in training rows without their answer{such_as}"
            )
    held_out = audit.validation
    if held_out is not None and held_out.leaked:
        yield (
            f"{held_out.leaked:,} of {held_out.items:,} validation rows are also training rows, "
            f"such as {_some(_leaks(held_out))}; the validation loss will be too low. Remove them "
            "from data.validation"
        )


def _warned_groups(audit: Audit) -> Iterator[str]:
    for one in audit.groups:
        where, of_what = f"{one.suite}/{one.task}", "items"
        if one.suite == VALIDATION:
            where, of_what = VALIDATION, "rows"
        yield (
            f"{one.shared:,} of {one.items:,} {of_what} of {where} are of clusters that training "
            f"rows are of, too, such as {_some(one.examples)}: what is learned of a cluster helps "
            "there, and not with new ones. Split by cluster"
        )


def _warned_classes(audit: Audit) -> Iterator[str]:
    counts = audit.classes.counts
    if counts and audit.classes.ratio < CLASS_RATIO:
        small = min(counts, key=lambda label: counts[label])
        large = max(counts, key=lambda label: counts[label])
        yield (
            f"the label {small!r} has {counts[small]:,} rows, {large!r} has {counts[large]:,}; a "
            "model that never predicts the first still has a high accuracy. Use macro_f1, or add "
            "rows of the small class"
        )


def _warned_pieces(audit: Audit) -> Iterator[str]:
    pieces = audit.tokens.pieces
    if pieces.share > BROKEN_SHARE:
        scripts = ", ".join(f"{name} {count:,}" for name, count in list(pieces.scripts.items())[:3])
        yield (
            f"{pieces.share:.1%} of the supervised tokens are parts of a character ({scripts}), "
            f"such as in {_some(pieces.examples)}; rows are longer and the model may write invalid "
            "characters. Use a backbone whose tokenizer covers this script"
        )


def _warned_shifts(audit: Audit) -> Iterator[str]:
    for shift in audit.shifts:
        if shift.significant and shift.auc >= SHIFT_AUC:
            yield (
                f"a classifier separates training rows from {shift.other} with AUC {shift.auc:.2f} "
                f"({shift.low:.2f} to {shift.high:.2f}): their distributions differ. Check that "
                "both come from the intended source"
            )


def _leaks(leakage: Leakage) -> list[str]:
    return [f"{leak.item} in {leak.origin}" for leak in leakage.examples if leak.kind != "prompt"]


def _some(places: Sequence[str]) -> str:
    return "; ".join(places[:_MAX_NAMED])
