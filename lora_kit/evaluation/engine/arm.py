"""Arms, the models that several arms share, and the context of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from lora_kit.evaluation.engine.journal import Journal
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.item import Item, Outcome
from lora_kit.evaluation.requests import Request
from lora_kit.recipe.sections import FEWSHOT


@dataclass(frozen=True)
class Arm:
    """One model variant under evaluation, such as `base` or `adapter`.

    Attributes:
        name: name of the arm in the ledger.
        identity: digest of the weights that produce the arm's outcomes.
        active: context manager that turns a loaded model into this arm.
        roles: roles of the suites that the arm is evaluated on.
        cached: if true, the arm's outcomes are reused between evaluations.
        files: digest of the files that ship, which the verdict records; empty for the identity.
    """

    name: str
    identity: str
    active: Callable[[Any], AbstractContextManager[Any]]
    roles: tuple[str, ...] = ("gain", "retention")
    cached: bool = False
    files: str = ""

    def applies_to(self, work: Work) -> bool:
        """Return true if the arm is evaluated on this task."""
        available = self.name != FEWSHOT or self.name in work.variants
        return work.suite.role in self.roles and available


@runtime_checkable
class Engine(AbstractContextManager[Any], Protocol):
    """Program that answers requests in place of a model of this process, such as a server.

    It is entered before the first request, and left after the last one.
    """

    def answer(self, requests: Sequence[Request]) -> list[Outcome]:
        """Return the outcome of each request.

        Raises:
            EvaluationError: if the program does not answer, or cannot answer such requests.
        """
        ...


@dataclass(frozen=True)
class LoadedArms:
    """Arms that share one loaded model, or one engine.

    Attributes:
        load: function that loads the model, or returns the engine; called only if items are left
            to evaluate.
        arms: arms of the model, in the order of evaluation.
        drift_identity: joint identity of base and adapter, if both are arms of this model; drift
            is then measured.
    """

    load: Callable[[], Any]
    arms: tuple[Arm, ...]
    drift_identity: str | None = None


class PathJudge(Protocol):
    """Judge of tasks between looks; the same answers on all processes, which all ask."""

    def ended(self, asked: Mapping[str, int]) -> Collection[str]:
        """Return the names of the tasks that have ended.

        Args:
            asked: last look at each task that can go on, by its name.
        """
        ...

    def undecided_merged(self, ended: Mapping[str, int]) -> Collection[str]:
        """Return the names of the tasks of which merged models need all items.

        Args:
            ended: look at which each task ended for the adapter, by its name.
        """
        ...


@dataclass(frozen=True)
class EvaluationContext:
    """Settings and results that all arms of an evaluation share.

    Attributes:
        tokenizer: tokenizer of the backbone.
        stop_token_ids: tokens on which generation ends.
        journal: journal of this process.
        done: ids of the items that already have a result, by key.
        no_cache: if true, ignore cached outcomes of the base.
    """

    tokenizer: Any
    stop_token_ids: tuple[int, ...]
    journal: Journal
    done: Mapping[str, Collection[str]]
    no_cache: bool = False

    def missing(self, key: str, items: Iterable[Item]) -> list[Item]:
        """Return the items without a result under this key."""
        done = self.done.get(key, ())
        return [item for item in items if item.id not in done]
