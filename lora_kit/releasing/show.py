"""A release as the command prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_kit.pipeline.releasing import Release

HEADS = {"conflict": "Licences in conflict", "condition": "Licence", "unknown": "Licence unknown"}


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
