"""An arm: one thing that is evaluated, and what it takes to evaluate it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from lora_kit.evaluation.engine.journal import Journal
from lora_kit.evaluation.engine.work import FEWSHOT, Work
from lora_kit.evaluation.item import Item


@dataclass(frozen=True)
class Arm:
    """One thing that is evaluated.

    Attributes:
        identity: digest of the weights that answer.
        active: makes a loaded model this arm.
        roles: of the suites that it is evaluated on.
        kept: whether its outcomes are kept between evaluations.
    """

    name: str
    identity: str
    active: Callable[[Any], AbstractContextManager[Any]]
    roles: tuple[str, ...] = ("gain", "retention")
    kept: bool = False

    def wants(self, work: Work) -> bool:
        """Whether the arm is evaluated on this task."""
        asked = self.name != FEWSHOT or self.name in work.variants
        return work.suite.role in self.roles and asked


@dataclass(frozen=True)
class LoadedArms:
    """Arms that share one load of a model.

    Attributes:
        load: loads it; called only if something is left to do.
        drifting: identity of base and adapter together where both are arms of this model.
    """

    load: Callable[[], Any]
    arms: tuple[Arm, ...]
    drifting: str | None = None


@dataclass(frozen=True)
class EvaluationContext:
    """What all arms are evaluated with.

    Attributes:
        done: ids of the items that are there already, by key.
    """

    tokenizer: Any
    stop_token_ids: tuple[int, ...]
    journal: Journal
    done: Mapping[str, Collection[str]]
    no_cache: bool = False

    def missing(self, key: str, items: Iterable[Item]) -> list[Item]:
        """The items without an entry under this key."""
        there = self.done.get(key, ())
        return [item for item in items if item.id not in there]
