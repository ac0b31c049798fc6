"""Tasks that a model with a head supports."""

from __future__ import annotations

from dataclasses import dataclass

from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.runtime.errors import EvaluationError


@dataclass(frozen=True)
class SupportedTasks:
    """Tasks that a head supports.

    Attributes:
        head: name of the head, with its article.
        kinds: kinds of the supported tasks.
        example: suite of such tasks, named in errors; empty for none.
        scores: supported scores; `None` stands for a task without `score`.
        no_score: reason why another score is not supported.
        retains: true if the base answers such tasks, so that it has something to retain.
    """

    head: str
    kinds: tuple[str, ...]
    example: str
    scores: tuple[str | None, ...]
    no_score: str
    retains: bool = False

    def require(self, suite: Suite, spec: TaskSpec) -> None:
        """Refuse a task that the head does not support.

        Raises:
            EvaluationError: if role, kind, score or shots do not fit the head.
        """
        place = f"evaluation.suites: {suite.name}/{spec.name}"
        if suite.role != "gain" and not self.retains:
            raise EvaluationError(
                f"{place}: the base of {self.head} has no head, so there is nothing to retain "
                f"(got role {suite.role}). Fix: use suites with role gain"
            )
        if spec.kind not in self.kinds:
            example = f", such as {self.example}" if self.example else ""
            raise EvaluationError(
                f"{place}: {self.head} supports only tasks of kind {' or '.join(self.kinds)} "
                f"(got kind {spec.kind}). Fix: use a suite of such tasks{example}"
            )
        if spec.score not in self.scores:
            raise EvaluationError(
                f"{place}: {self.no_score} (got score {spec.score}). Fix: use "
                f"{' or '.join(score for score in self.scores if score)}"
            )
        if spec.shots:
            raise EvaluationError(
                f"{place}: {self.head} takes no examples (got shots {spec.shots}). Fix: remove "
                "shots"
            )
