"""What the licences of a base model and of data say of one another. Facts, and no legal advice.

Terms are those of the licences' texts; ids are SPDX's (https://spdx.org/licenses), and the hub's
where a licence has none there. What is not in the table is to be read by a person, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lora_kit.recipe.section import Section

Kind = Literal["conflict", "condition", "unknown"]


@dataclass(frozen=True)
class Terms:
    """What a licence asks of who uses a work, or what was made of it.

    Attributes:
        hub: the id by which the hub knows it; empty where it knows it by none.
        commercial: commercial use is allowed.
        derivatives: changed works may be shared.
        same: what is made of it has to be under the same licence (share-alike, copyleft).
        conditions: it has terms of use of its own, such as a policy of acceptable use.
    """

    hub: str = ""
    commercial: bool = True
    derivatives: bool = True
    same: bool = False
    conditions: bool = False

    @property
    def restrictions(self) -> int:
        """How many of the four it asks."""
        return sum((not self.commercial, not self.derivatives, self.same, self.conditions))


class Licensed(Section):
    """A work and the licence that is stated for it."""

    work: str
    """What it is called."""
    used: Literal["base", "train", "replay", "retention", "validation"]
    """What for."""
    license: str | None
    """As it was stated; nothing where it is stated nowhere."""
    stated: str
    """Where it is stated."""
    hub: bool = False
    """Whether the work is an id on the hub."""


class Note(Section):
    """What somebody who publishes the release has to know of its licences."""

    kind: Kind
    """`conflict`: two licences, or a licence and a release, exclude one another; `condition`: it
    goes with the release; `unknown`: somebody has to read it first."""
    text: str
    """In words."""


def _table() -> dict[str, Terms]:
    """By id, in small letters."""
    permissive = {
        **{name.lower(): name.lower() for name in _PERMISSIVE_ON_HUB.split()},
        **dict.fromkeys(_PERMISSIVE_ELSEWHERE.lower().split(), ""),
        "odc-by-1.0": "odc-by", "odc-by": "odc-by", "pddl-1.0": "pddl", "pddl": "pddl",
    }  # fmt: skip
    table = {name: Terms(hub) for name, hub in permissive.items()}
    for name in _COPYLEFT.lower().split():
        # The hub has no `-only` and `-or-later`.
        hub = re.sub(r"-(only|or-later)$", "", name)
        table[name] = table[hub] = Terms(hub, same=True)
    table |= dict.fromkeys(("odbl-1.0", "odbl"), Terms("odbl", same=True))
    for version in ("2.0", "2.5", "3.0", "4.0"):
        for marks in ("nc", "nd", "sa", "nc-sa", "nc-nd"):
            name = f"cc-by-{marks}-{version}"
            table[name] = Terms(name, "nc" not in marks, "nd" not in marks, "sa" in marks)
    for name in _OWN_CONDITIONS.split():
        table[name] = Terms(name, conditions=True)
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
# Free to use within their own rules: acceptable use, naming, size of the user's company.
_OWN_CONDITIONS = (
    "llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma openrail openrail++ "
    "creativeml-openrail-m bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m"
)
TABLE = _table()


def terms(expression: str) -> Terms | None:
    """The terms of a licence, or of several joined by AND, or by OR, of which one may be chosen.

    Returns:
        `None` where a part of it is not known here.
    """
    choices = [_joint(choice.split(" AND ")) for choice in expression.strip().split(" OR ")]
    known = [choice for choice in choices if choice is not None]
    if len(known) < len(choices):
        return None
    return min(known, key=lambda choice: choice.restrictions)


def _joint(names: Sequence[str]) -> Terms | None:
    """The terms of works that all of the named licences hold for."""
    parts = [TABLE.get(name.strip().lower()) for name in names]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return Terms(
        known[0].hub if len(known) == 1 else "",
        all(part.commercial for part in known),
        all(part.derivatives for part in known),
        any(part.same for part in known),
        any(part.conditions for part in known),
    )


def notes(works: Sequence[Licensed]) -> tuple[Note, ...]:
    """What is to be known before a model made of these works is published, conflicts first.

    Whether a model is a work derived from its training data is not settled; what a licence asks of
    derived works is therefore said, and not left out.

    Args:
        works: the base model, and the data that it was trained on.
    """
    base = next(work for work in works if work.used == "base")
    # Rows that only a loss was measured on are not in the weights.
    trained_on = [work for work in works if work.used in ("train", "replay", "retention")]
    sources = list({(work.work, work.license): work for work in trained_on}.values())
    found = [
        *(note for work in (base, *sources) for note in _alone(work)),
        *(note for work in sources for note in _against_base(work, base)),
        *_between(sources),
    ]
    order: list[Kind] = ["conflict", "condition", "unknown"]
    return tuple(sorted(found, key=lambda note: order.index(note.kind)))


def _alone(work: Licensed) -> Iterator[Note]:
    name = f"the {'base model' if work.used == 'base' else 'source'} {work.work}"
    if work.license is None:
        field = "backbone.license" if work.used == "base" else "the source's `license`"
        text = f"the licence of {name} is stated nowhere; find it, and write it into {field}"
        yield Note(kind="unknown", text=text)
        return
    found = terms(work.license)
    if found is None:
        text = f"{name} is under {work.license}, whose terms are not known here; read them"
        yield Note(kind="unknown", text=text)
        return
    if not found.derivatives:
        text = f"{name} is under {work.license}, which forbids to share what is made of it"
        yield Note(kind="conflict", text=text)
    if work.used == "base" and not found.commercial:
        text = f"{name} is under {work.license}: no commercial use of this model either"
        yield Note(kind="condition", text=text)
    if found.conditions or (work.used == "base" and found.same):
        text = f"{name} is under {work.license}, whose terms go with every model made of it"
        yield Note(kind="condition", text=text)


def _against_base(source: Licensed, base: Licensed) -> Iterator[Note]:
    of_source, of_base = terms(source.license or ""), terms(base.license or "")
    if of_source is None or of_base is None:
        return
    if not of_source.commercial and of_base.commercial:
        yield Note(
            kind="conflict",
            text=f"the source {source.work} is under {source.license}, which forbids commercial "
            f"use; the base's {base.license} allows it",
        )
    if of_source.same and _family(source) != _family(base):
        yield Note(
            kind="conflict",
            text=f"the source {source.work} is under {source.license}, which asks for the same "
            f"licence on what is made of it; the base is under {base.license}",
        )


def _between(sources: Sequence[Licensed]) -> Iterator[Note]:
    asking = [s for s in sources if (found := terms(s.license or "")) and found.same]
    for number, one in enumerate(asking):
        for other in asking[number + 1 :]:
            if _family(one) != _family(other):
                yield Note(
                    kind="conflict",
                    text=f"the sources {one.work} ({one.license}) and {other.work} "
                    f"({other.license}) each ask for their own licence on what is made of them",
                )


def _family(work: Licensed) -> str:
    """A licence without what does not keep it from being the same one: CC's version, `-only`."""
    name = (work.license or "").strip().lower()
    return re.sub(r"^(cc-.*)-\d\.\d$|-(only|or-later)$", r"\1", name)


def hub_license(base: Licensed, found: Sequence[Note]) -> dict[str, str]:
    """The card's `license`: the base's, which goes with its weights; none in a conflict.

    The hub takes its own ids; others are `other` with a name and a link.
    """
    if any(note.kind == "conflict" for note in found):
        return {}
    if base.license is None:
        return {"license": "unknown"}
    known = terms(base.license)
    if known and known.hub:
        return {"license": known.hub}
    name = re.sub(r"[^a-z0-9.]+", "-", base.license.lower()).strip("-.") or "see-the-card"
    return {"license": "other", "license_name": name[:96]}
