"""Acceptance of an INCONCLUSIVE verdict by the person who releases, with a reason."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

from lora_kit.recipe.section import Section
from lora_kit.runtime.errors import ReleaseError


class Acceptance(Section):
    """Decision of a person to release despite an INCONCLUSIVE verdict."""

    decision: Literal["INCONCLUSIVE"] = "INCONCLUSIVE"
    """Accepted decision; FAIL cannot be accepted."""
    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    """Reason of the acceptance, printed in the model card."""
    tasks: tuple[str, ...] = ()
    """Undecided tasks, as `suite/task` or `suite/task, merged`."""


def parse_acceptance(accept: str | None, reason: str | None) -> Acceptance | None:
    """Parse the options `--accept` and `--reason`; `None` if neither is set.

    Raises:
        ReleaseError: if one option lacks the other, or `accept` is not `inconclusive`.
    """
    given_reason = (reason or "").strip()
    if accept is None:
        if given_reason:
            raise ReleaseError(
                f"--reason: is used only with --accept (got {given_reason!r}). Fix: add --accept "
                "inconclusive, or drop --reason",
                status=2,
            )
        return None
    if accept.lower() != "inconclusive":
        raise ReleaseError(
            f"--accept: only an INCONCLUSIVE verdict can be accepted, never a FAIL (got {accept}). "
            "Fix: write --accept inconclusive",
            status=2,
        )
    if not given_reason:
        raise ReleaseError(
            '--accept: a reason is missing (got no --reason). Fix: add --reason "...", which is '
            "printed in the model card",
            status=2,
        )
    return Acceptance(reason=given_reason)
