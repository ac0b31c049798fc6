"""Results of items as another program wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_kit.runtime.errors import EvaluationError, did_you_mean

Format = Literal["lm-eval", "inspect", "table"]


@dataclass(frozen=True)
class Result:
    """Score of one item.

    Attributes:
        id: name of the item in its task.
        origin: place in the file, for error messages.
        score: score; `None` if the program has none.
        cluster: value that is shared by items that are not independent.
        asked: values by name that have to be equal in both files, such as the prompt's digest.
        output: answer of the model.
        prompt: prompt as shown in reports.
        reference: correct answer.
        measures: other scores of the item by name.
        log_likelihoods: nats, one for each choice.
        choices: texts of the choices.
        answer: index of the correct choice.
    """

    id: str
    origin: str
    score: float | None
    cluster: str
    asked: Mapping[str, str] = field(default_factory=dict)
    output: str = ""
    prompt: str = ""
    reference: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)
    log_likelihoods: tuple[float, ...] = ()
    choices: tuple[str, ...] = ()
    answer: int | None = None


@dataclass(frozen=True)
class TaskResults:
    """Results of one task in one file.

    Attributes:
        name: name of the task.
        path: file that holds them.
        format: kind of the file.
        metric: name of the score.
        lower_is_better: true if a lower score is better; `None` if the file does not say.
        items: results by the id of their item.
    """

    name: str
    path: Path
    format: Format
    metric: str
    lower_is_better: bool | None
    items: Mapping[str, Result]


@dataclass(frozen=True)
class Columns:
    """Parts of the files that are read.

    Attributes:
        metric: score; by default the first one that is a number of each item.
        cluster: field whose value is shared by items that are not independent.
    """

    metric: str | None = None
    cluster: str | None = None


# The first score of each file; each item for itself.
FIRST = Columns()


def by_id(results: Iterable[Result]) -> dict[str, Result]:
    """Return results by the id of their item.

    Raises:
        EvaluationError: if an id is there twice.
    """
    items: dict[str, Result] = {}
    for result in results:
        first = items.setdefault(result.id, result)
        if first is not result:
            raise EvaluationError(
                f"{result.origin}: id: an item has one result (got {result.id!r} a second time, "
                f"after {first.origin}). Fix: remove one, or give each item its own id"
            )
    return items


def cluster_of(fields: Mapping[str, Any], name: str | None, default: str, origin: str) -> str:
    """Return the cluster of an item: the value of the field, or the item itself without one.

    Raises:
        EvaluationError: if the item has no such field.
    """
    if name is None:
        return default
    if fields.get(name) is None:
        raise EvaluationError(
            f"{origin}: --cluster: no such field (got {name}).{did_you_mean(name, fields)} Fix: "
            f"use {', '.join(map(str, fields)) or 'another file'}"
        )
    return str(fields[name])
