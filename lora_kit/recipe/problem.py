"""A problem of a recipe: which fields conflict, why, and what to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One reason why a recipe cannot work as written.

    Attributes:
        fields: dotted names of the fields that conflict. The first is the one to report; a problem
            is dropped if any of the others is invalid itself.
        reason: the conflict, as a clause that follows the field's name.
        given: the value of the first field; empty if the reason says it already.
        remedy: remedy, as a clause in the imperative.
    """

    fields: tuple[str, ...]
    reason: str
    given: str
    remedy: str

    def describe(self) -> str:
        """Return `field: reason (got X). Fix: remedy`."""
        given = f" (got {self.given})" if self.given else ""
        return f"{self.fields[0]}: {self.reason}{given}. Fix: {self.remedy}"


def conflict(*fields: str, reason: str, given: object = "", fix: str = "remove it") -> Problem:
    """Return a problem of one or more fields, the one to report first."""
    return Problem(fields, reason, str(given), fix)
