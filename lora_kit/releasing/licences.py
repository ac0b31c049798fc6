"""Compatibility of the licences of a base model and of data. Facts, not legal advice.

Terms follow the licences' texts. Ids are SPDX's (https://spdx.org/licenses), or the hub's for
licences without an SPDX id. A licence missing from the table must be read by a person; its terms
are never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lora_kit.recipe.section import Section

NoteKind = Literal["conflict", "condition", "unknown"]


@dataclass(frozen=True)
class LicenceTerms:
    """Terms of a licence for users of a work and for derivative works.

    Attributes:
        hub: id of the licence on the hub; empty if the hub has none.
        commercial: true if commercial use is allowed.
        derivatives: true if derivative works may be shared.
        share_alike: true if derivative works must have the same licence (share-alike, copyleft).
        conditions: true if the licence has its own terms of use, such as an acceptable use policy.
    """

    hub: str = ""
    commercial: bool = True
    derivatives: bool = True
    share_alike: bool = False
    conditions: bool = False

    @property
    def restrictions(self) -> int:
        """Number of restrictions, 0 to 4."""
        return sum((not self.commercial, not self.derivatives, self.share_alike, self.conditions))


class LicensedWork(Section):
    """Work that a release is based on, with its stated licence."""

    work: str
    """Name of the work."""
    used: Literal["base", "teacher", "writer", "train", "replay", "retention", "validation"]
    """Use of the work."""
    license: str | None
    """Stated licence, verbatim; `None` if no licence is stated."""
    stated: str
    """Source of the licence statement."""
    hub: bool = False
    """True if `work` is an id on the hub."""


class LicenceNote(Section):
    """Note on licences for the publisher of a release."""

    kind: NoteKind
    """`conflict`: two licences, or a licence and the release, are incompatible; `condition`: terms
    that apply to the release; `unknown`: a person must read the licence first."""
    text: str
    """Text of the note."""


def _table() -> dict[str, LicenceTerms]:
    """Return the terms of known licences by id, in lower case."""
    permissive = {
        **{name.lower(): name.lower() for name in _PERMISSIVE_ON_HUB.split()},
        **dict.fromkeys(_PERMISSIVE_ELSEWHERE.lower().split(), ""),
        "odc-by-1.0": "odc-by", "odc-by": "odc-by", "pddl-1.0": "pddl", "pddl": "pddl",
    }  # fmt: skip
    table = {name: LicenceTerms(hub) for name, hub in permissive.items()}
    for name in _COPYLEFT.lower().split():
        # The hub's ids have no `-only` and `-or-later`.
        hub = re.sub(r"-(only|or-later)$", "", name)
        table[name] = table[hub] = LicenceTerms(hub, share_alike=True)
    table |= dict.fromkeys(("odbl-1.0", "odbl"), LicenceTerms("odbl", share_alike=True))
    for version in ("2.0", "2.5", "3.0", "4.0"):
        for marks in ("nc", "nd", "sa", "nc-sa", "nc-nd"):
            name = f"cc-by-{marks}-{version}"
            table[name] = LicenceTerms(name, "nc" not in marks, "nd" not in marks, "sa" in marks)
    for name in _OWN_CONDITIONS.split():
        table[name] = LicenceTerms(name, conditions=True)
    return table


_PERMISSIVE_ON_HUB = (
    "Apache-2.0 MIT BSD-2-Clause BSD-3-Clause BSD-3-Clause-Clear BSL-1.0 ISC Zlib Unlicense WTFPL "
    "CC0-1.0 CC-BY-2.0 CC-BY-2.5 CC-BY-3.0 CC-BY-4.0 AFL-3.0 Artistic-2.0 ECL-2.0 NCSA PostgreSQL"
)
_PERMISSIVE_ELSEWHERE = (
    "0BSD PSF-2.0 Python-2.0 Python-2.0.1 CDLA-Permissive-2.0 MIT-0 BlueOak-1.0.0"
)
_COPYLEFT = (
    "GPL-2.0-only GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later AGPL-3.0-only AGPL-3.0-or-later "
    "LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0-only LGPL-3.0-or-later MPL-2.0 EPL-2.0 EUPL-1.2 "
    "OSL-3.0"
)
# Free to use under own rules: acceptable use, naming, size of the user's company.
_OWN_CONDITIONS = (
    "llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma openrail openrail++ "
    "creativeml-openrail-m bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m"
)
TABLE = _table()


def licence_terms(expression: str) -> LicenceTerms | None:
    """Return the terms of a licence, or of licences joined by AND or OR.

    Of alternatives joined by OR, the least restrictive one is chosen.

    Args:
        expression: licence ids joined by AND and OR, without parentheses.

    Returns:
        Terms of the expression; `None` if any part of the expression is unknown.
    """
    choices = [_combined_terms(c.split(" AND ")) for c in expression.strip().split(" OR ")]
    known = [choice for choice in choices if choice is not None]
    if len(known) < len(choices):
        return None
    return min(known, key=lambda choice: choice.restrictions)


def _combined_terms(names: Sequence[str]) -> LicenceTerms | None:
    """Return the terms of a work to which all of the named licences apply."""
    parts = [TABLE.get(name.strip().lower()) for name in names]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return LicenceTerms(
        known[0].hub if len(known) == 1 else "",
        all(part.commercial for part in known),
        all(part.derivatives for part in known),
        any(part.share_alike for part in known),
        any(part.conditions for part in known),
    )


def licence_notes(works: Sequence[LicensedWork]) -> tuple[LicenceNote, ...]:
    """Return notes to read before publishing a model made from these works, conflicts first.

    The law has not settled if a model is a derivative work of its training data, so the terms for
    derivative works are reported rather than left out.

    Args:
        works: the base model, a teacher, a writer and the data sources.
    """
    base = next(work for work in works if work.used == "base")
    # Validation rows do not influence the weights.
    trained_on = [work for work in works if work.used not in ("base", "validation")]
    sources = list({(work.work, work.license): work for work in trained_on}.values())
    notes = [
        *(note for work in (base, *sources) for note in _notes_on_work(work)),
        *(note for work in sources for note in _conflicts_with_base(work, base)),
        *_conflicts_between(sources),
    ]
    order: list[NoteKind] = ["conflict", "condition", "unknown"]
    return tuple(sorted(notes, key=lambda note: order.index(note.kind)))


def _name(work: LicensedWork) -> str:
    kind = {"base": "base model", "teacher": "teacher", "writer": "writer"}.get(work.used, "source")
    return f"the {kind} {work.work}"


def _notes_on_work(work: LicensedWork) -> Iterator[LicenceNote]:
    name = _name(work)
    if work.license is None:
        field = "backbone.license" if work.used == "base" else "its `license`"
        text = f"the licence of {name} is not stated; find the licence and set {field}"
        yield LicenceNote(kind="unknown", text=text)
        return
    terms, under = licence_terms(work.license), f"{name} is under {work.license}"
    if terms is None:
        text = f"{under}, whose terms lora_kit does not know; read them"
        yield LicenceNote(kind="unknown", text=text)
        return
    found: dict[str, tuple[NoteKind, bool]] = {
        "which forbids sharing derivative works": ("conflict", not terms.derivatives),
        "which forbids commercial use of this model too": (
            "condition",
            work.used == "base" and not terms.commercial,
        ),
        "whose terms apply to every model made from it": (
            "condition",
            terms.conditions or (work.used == "base" and terms.share_alike),
        ),
    }
    for text, (kind, holds) in found.items():
        if holds:
            yield LicenceNote(kind=kind, text=f"{under}, {text}")


def _conflicts_with_base(source: LicensedWork, base: LicensedWork) -> Iterator[LicenceNote]:
    of_source, of_base = licence_terms(source.license or ""), licence_terms(base.license or "")
    if of_source is None or of_base is None:
        return
    if not of_source.commercial and of_base.commercial:
        yield LicenceNote(
            kind="conflict",
            text=f"{_name(source)} is under {source.license}, which forbids commercial "
            f"use, but the base's {base.license} allows it",
        )
    if of_source.share_alike and _licence_family(source) != _licence_family(base):
        yield LicenceNote(
            kind="conflict",
            text=f"{_name(source)} is under {source.license}, which requires the same "
            f"licence for derivative works, but the base is under {base.license}",
        )


def _conflicts_between(sources: Sequence[LicensedWork]) -> Iterator[LicenceNote]:
    share_alike = [
        source
        for source in sources
        if (terms := licence_terms(source.license or "")) and terms.share_alike
    ]
    for number, one in enumerate(share_alike):
        for other in share_alike[number + 1 :]:
            if _licence_family(one) != _licence_family(other):
                yield LicenceNote(
                    kind="conflict",
                    text=f"the sources {one.work} ({one.license}) and {other.work} "
                    f"({other.license}) each require their own licence for derivative works",
                )


def _licence_family(work: LicensedWork) -> str:
    """Return the licence id without parts that share-alike ignores: CC's version, `-only`."""
    name = (work.license or "").strip().lower()
    return re.sub(r"^(cc-.*)-\d\.\d$|-(only|or-later)$", r"\1", name)


def hub_license(base: LicensedWork, notes: Sequence[LicenceNote]) -> dict[str, str]:
    """Return the card's `license` and `license_name`: those of the base; empty in a conflict.

    The hub accepts its own ids; any other licence is `other` with a name.
    """
    if any(note.kind == "conflict" for note in notes):
        return {}
    if base.license is None:
        return {"license": "unknown"}
    terms = licence_terms(base.license)
    if terms and terms.hub:
        return {"license": terms.hub}
    name = re.sub(r"[^a-z0-9.]+", "-", base.license.lower()).strip("-.") or "see-the-card"
    return {"license": "other", "license_name": name[:96]}
