"""Which tasks a model with a head can be asked."""

from __future__ import annotations

from dataclasses import dataclass

from lora_kit.evaluation.suite import Suite, TaskSpec
from lora_kit.runtime.errors import EvaluationError


@dataclass(frozen=True)
class Askable:
    """What a head answers.

    Attributes:
        name: of what it is.
        kind: of the tasks that it answers.
        answers: what it does with them, and which ones those are.
        scores: that its answers can have; `None` where the task names none.
        length: why answers have no length that a score could go by.
    """

    name: str
    kind: str
    answers: str
    scores: tuple[str | None, ...]
    length: str

    def require(self, suite: Suite, spec: TaskSpec) -> None:
        """Raises EvaluationError for a task that the head cannot be asked."""
        place = f"evaluation.suites: {suite.name}/{spec.name}"
        if suite.role != "gain":
            raise EvaluationError(
                f"{place}: role {suite.role}: the base of {self.name} has no head, so that there "
                "is nothing that it could forget; name suites with the role gain"
            )
        if spec.kind != self.kind:
            raise EvaluationError(f"{place}: kind {spec.kind}: {self.name} {self.answers}")
        if spec.score not in self.scores:
            raise EvaluationError(
                f"{place}: score {spec.score}: {self.length}; possible: "
                f"{', '.join(score for score in self.scores if score)}"
            )
        if spec.shots:
            raise EvaluationError(
                f"{place}: shots: {self.name} is not shown examples; leave it out"
            )
