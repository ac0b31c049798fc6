"""What a person takes upon themselves: to release what is undecided, and to say why."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lora_kit.recipe.section import Section
from lora_kit.runtime.errors import ReleaseError


class Acceptance(Section):
    """A person's word that a verdict that is INCONCLUSIVE may be released all the same."""

    decision: Literal["INCONCLUSIVE"] = "INCONCLUSIVE"
    """What was accepted; a FAIL never is."""
    reason: Annotated[str, Field(min_length=1)]
    """Why; it stands in the card."""
    tasks: tuple[str, ...] = ()
    """The tasks that were undecided, as `suite/task` or `suite/task, merged`."""


def accepted(accept: str | None, reason: str | None) -> Acceptance | None:
    """What `--accept` and `--reason` say together; nothing if neither is given.

    Raises:
        ReleaseError: if one lacks the other, or what is accepted cannot be.
    """
    said = (reason or "").strip()
    if accept is None:
        if said:
            raise ReleaseError("--reason goes with --accept inconclusive", status=2)
        return None
    if accept.lower() != "inconclusive":
        raise ReleaseError(
            f"--accept {accept}: possible: inconclusive. What failed is not released", status=2
        )
    if not said:
        raise ReleaseError(
            '--accept inconclusive: say why with --reason "..."; it will stand in the card',
            status=2,
        )
    return Acceptance(reason=said)
