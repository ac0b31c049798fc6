"""Result of a release, and its summary on the console."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.releasing.acceptance import Acceptance
from lora_kit.releasing.licences import LicenceNote
from lora_kit.statistics.decisions import Decision

NOTE_HEADINGS = {
    "conflict": "Licence conflict",
    "condition": "Licence condition",
    "unknown": "Licence unknown",
}


@dataclass(frozen=True)
class Release:
    """Release on disk.

    Attributes:
        directory: the release directory.
        decision: decision for the adapter and the merged model together.
        acceptance: acceptance of the verdict if `decision` is INCONCLUSIVE.
        files: number of files.
        bytes: total size of the files, in bytes.
        licences: notes on licences to read before publishing.
        warnings: parts that some programs cannot load unchanged.
        commit: URL of the commit on the hub; `None` if the release was not pushed.
    """

    directory: Path
    decision: Decision
    acceptance: Acceptance | None
    files: int
    bytes: int
    licences: tuple[LicenceNote, ...]
    warnings: tuple[str, ...]
    commit: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the release as JSON values."""
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
    """Describe a release: its directory and size, notes on it, and the next command."""
    lines = [f"Released: {made.directory} ({made.files} files, {made.bytes / 1e6:,.1f} MB)"]
    if made.acceptance:
        lines.append(
            f"Verdict: {made.decision}, accepted; the model card states it with the reason: "
            f"{made.acceptance.reason}"
        )
    lines += release_notes(made)
    lines.append(f"Verify the release: lora-kit verify {made.directory}")
    if made.commit:
        lines.append(f"On the hub: {made.commit}")
    else:
        lines.append("Publish the release: run the same command with --push OWNER/NAME")
    return "\n".join(lines)


def release_notes(made: Release) -> list[str]:
    """Return notes to read before publishing: on licences, and on loading problems."""
    return [
        *(f"{NOTE_HEADINGS[note.kind]}: {note.text}" for note in made.licences),
        *(f"Note: {warning}" for warning in made.warnings),
    ]
