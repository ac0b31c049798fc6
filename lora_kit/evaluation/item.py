"""An item: what a model is asked, what it made of it, and how that is graded.

Two halves that know nothing of one another: a request is all that the model sees, an outcome all
that it gives back, so outcomes can be kept and graded anew; a grade is a function of both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_kit.data.tokenization import Example
from lora_kit.evaluation.suite import TaskSpec
from lora_kit.metrics.instruction_checks import Check


@dataclass(frozen=True)
class LossRequest:
    """The likelihood of the supervised tokens of one example."""

    example: Example

    @property
    def length(self) -> int:
        """Tokens of its row in a batch."""
        return len(self.example.input_ids)


@dataclass(frozen=True)
class Branch:
    """A continuation of a prompt, of whose tokens the last `scored` count."""

    input_ids: tuple[int, ...]
    scored: int


@dataclass(frozen=True)
class ChoiceRequest:
    """The likelihood of each of several continuations of one prompt.

    `prompt_ids` holds one token at least, since nothing precedes the first one that it could be
    predicted from.
    """

    prompt_ids: tuple[int, ...]
    branches: tuple[Branch, ...]

    @property
    def length(self) -> int:
        """Tokens of its row in a batch, all branches behind one prompt, each but its last one."""
        return len(self.prompt_ids) + sum(len(branch.input_ids) - 1 for branch in self.branches)


@dataclass(frozen=True)
class GenerationRequest:
    """A greedy continuation, up to a token that ends the turn or one of the texts in `stop`."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of its row in a batch, at most."""
        return len(self.prompt_ids) + self.max_new_tokens


@dataclass(frozen=True)
class ClassRequest:
    """The likelihood of each class that a head chooses from, given a text."""

    input_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of its row in a batch."""
        return len(self.input_ids)


@dataclass(frozen=True)
class RewardRequest:
    """The reward of each of several answers to one prompt, which each of them begins with."""

    answers: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Tokens of its rows in a batch, at most."""
        return len(self.answers) * max(map(len, self.answers))


Request = LossRequest | ChoiceRequest | GenerationRequest | ClassRequest | RewardRequest
# Of a head: whole rows, which have nothing but the row itself to be scored in.
OfHead = ClassRequest | RewardRequest


def tokens_of(request: Request) -> tuple[tuple[int, ...], int]:
    """The tokens that are read before an answer, and how many the longest answer has."""
    assert not isinstance(request, OfHead)  # which has none
    if isinstance(request, LossRequest):
        return request.example.input_ids, 0
    if isinstance(request, GenerationRequest):
        return request.prompt_ids, request.max_new_tokens
    return request.prompt_ids, max(len(branch.input_ids) for branch in request.branches)


@dataclass(frozen=True)
class Outcome:
    """What an arm made of one request.

    Attributes:
        log_likelihoods: nats, of each branch or class; of an example, one: of what is supervised;
            of answers that a reward model is asked for, their rewards.
        greedy: for each of them, whether every scored token was the most likely one.
        text: that was generated.
        tokens: that were processed.
    """

    log_likelihoods: tuple[float, ...] = ()
    greedy: tuple[bool, ...] = ()
    text: str = ""
    tokens: int = 0


@dataclass(frozen=True)
class Item:
    """One question to a model.

    Attributes:
        id: the same in every run.
        cluster: items of one cluster are not independent.
        prompt: as it is shown to people.
        reference: what would be right, as it is shown to people.
        request: what the model sees.
        slices: values by which items are told apart, such as `field`: `geography`.
        choices: texts of the branches, where they are choices.
        answer: index of the right one.
        references: any of which would be right, for a metric.
        checks: that a response has to pass.
        scored_bytes: UTF-8 bytes of the text whose likelihood is taken.
        document: what another harness made the item from.
    """

    id: str
    cluster: str
    prompt: str
    reference: str
    request: Request
    slices: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    answer: int | None = None
    references: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    scored_bytes: int = 0
    document: Any = None


@dataclass(frozen=True)
class Graded:
    """An outcome's worth.

    Attributes:
        score: what the verdict is about; `None` where there is none.
        output: what the arm said or chose; empty for a loss.
        measures: by name, what is reported besides.
    """

    score: float | None
    output: str
    measures: Mapping[str, float] = field(default_factory=dict)


Grade = Callable[[Item, Outcome], Graded]


@dataclass(frozen=True)
class Task:
    """A task with its items and how they are graded."""

    spec: TaskSpec
    items: Sequence[Item]
    grade: Grade
