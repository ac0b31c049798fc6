"""A release that was made: what there is to say of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.releasing.acceptance import Acceptance
from lora_kit.releasing.licences import Note
from lora_kit.statistics.decisions import Decision

HEADS = {"conflict": "Licences in conflict", "condition": "Licence", "unknown": "Licence unknown"}


@dataclass(frozen=True)
class Release:
    """A release on disk.

    Attributes:
        decision: of adapter and merged model together.
        acceptance: where that is INCONCLUSIVE.
        files: how many there are.
        bytes: of all of them.
        licences: what is to be known of them before it is published.
        warnings: what does not load as it is.
        commit: address of the commit on the hub; `None` where it was not pushed.
    """

    directory: Path
    decision: Decision
    acceptance: Acceptance | None
    files: int
    bytes: int
    licences: tuple[Note, ...]
    warnings: tuple[str, ...]
    commit: str | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "release": str(self.directory),
            "decision": self.decision,
            "acceptance": self.acceptance.model_dump(mode="json") if self.acceptance else None,
            "files": self.files,
            "bytes": self.bytes,
            "licences": [note.model_dump(mode="json") for note in self.licences],
            "warnings": list(self.warnings),
            "commit": self.commit,
        }


def show_release(made: Release) -> str:
    """Where it is, how large, what to know of its licences, and what comes next."""
    lines = [f"Released: {made.directory} ({made.files} files, {made.bytes / 1e6:,.1f} MB)"]
    if made.acceptance:
        lines.append(
            f"Its verdict is {made.decision}; the card says so, and the reason that was given: "
            f"{made.acceptance.reason}"
        )
    lines += remarks(made)
    lines.append(f"Check it any time: lora-kit verify {made.directory}")
    if made.commit:
        lines.append(f"On the hub: {made.commit}")
    else:
        lines.append("Publish it: the same command with --push OWNER/NAME")
    return "\n".join(lines)


def remarks(made: Release) -> list[str]:
    """What to know before it is published: of licences, and of what does not load as it is."""
    return [
        *(f"{HEADS[note.kind]}: {note.text}" for note in made.licences),
        *(f"Note: {warning}" for warning in made.warnings),
    ]
