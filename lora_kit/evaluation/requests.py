"""Requests to a model: everything that it reads of an item.

A request does not depend on the grading, so that cached outcomes can be graded again.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_kit.data.supervision import Example
from lora_kit.recipe.embedding import Pooling


@dataclass(frozen=True)
class LossRequest:
    """Request for the likelihood of the supervised tokens of one example."""

    example: Example

    @property
    def length(self) -> int:
        """Tokens of the request's row in a batch."""
        return len(self.example.input_ids)


@dataclass(frozen=True)
class Branch:
    """Continuation of a prompt; only its last `scored` tokens are scored."""

    input_ids: tuple[int, ...]
    scored: int


@dataclass(frozen=True)
class ChoiceRequest:
    """Request for the likelihood of each of several continuations of one prompt.

    `prompt_ids` holds at least one token, from which the first token of a continuation is
    predicted.
    """

    prompt_ids: tuple[int, ...]
    branches: tuple[Branch, ...]

    @property
    def length(self) -> int:
        """Tokens of the request's row in a batch: the prompt and all but one token a branch."""
        return len(self.prompt_ids) + sum(len(branch.input_ids) - 1 for branch in self.branches)


@dataclass(frozen=True)
class GenerationRequest:
    """Request for a greedy continuation, up to an end-of-turn token or a text in `stop`."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Upper bound of the tokens of the request's row in a batch."""
        return len(self.prompt_ids) + self.max_new_tokens


@dataclass(frozen=True)
class Sampling:
    """Sampling of several answers.

    Attributes:
        samples: number of answers.
        temperature: sampling temperature.
        top_p: share of the probability that tokens are drawn from, the most likely ones first.
        seed: seed of the random choices.
    """

    samples: int
    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True)
class SampledRequest(GenerationRequest):
    """Request for several sampled continuations in place of the greedy one."""

    sampling: Sampling = Sampling(1, 1.0, 1.0, 0)


@dataclass(frozen=True)
class TextRequest:
    """Request for the outputs of a head, given a text."""

    input_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of the request's row in a batch."""
        return len(self.input_ids)


@dataclass(frozen=True)
class ClassRequest(TextRequest):
    """Request for the likelihood of each class of a classifier's head."""


@dataclass(frozen=True)
class NumberRequest(TextRequest):
    """Request for the numbers of a regression's head."""


@dataclass(frozen=True)
class LabelRequest(TextRequest):
    """Request for the likelihood of each label of a multi-label head."""


@dataclass(frozen=True)
class TagRequest(TextRequest):
    """Request for the likelihood of each tag of each word.

    Attributes:
        words: words of the text.
        starts: position of the first token of each word; `None` for a word without a token.
    """

    words: tuple[str, ...]
    starts: tuple[int | None, ...]

    @property
    def words_read(self) -> list[tuple[str, int]]:
        """Words with a token, and the position of its first one."""
        pairs = zip(self.words, self.starts, strict=True)
        return [(word, start) for word, start in pairs if start is not None]


@dataclass(frozen=True)
class MaskedRequest(TextRequest):
    """Request for the likelihood of each token of a text, given all others.

    Attributes:
        positions: positions of the tokens that are scored, which special tokens are not.
        mask_token_id: token in the place of the one that is predicted.
    """

    positions: tuple[int, ...]
    mask_token_id: int


@dataclass(frozen=True)
class QueryRequest(TextRequest):
    """Request for the ranks of the right documents among those of the task's corpus.

    Attributes:
        right: indexes of the right documents in the corpus.
        pooling: hidden states that become the vector of a text.
    """

    right: tuple[int, ...] = ()
    pooling: Pooling = "mean"


@dataclass(frozen=True)
class SimilarityRequest:
    """Request for the cosine between the vectors of two texts."""

    texts: tuple[tuple[int, ...], tuple[int, ...]]
    pooling: Pooling

    @property
    def length(self) -> int:
        """Upper bound of the tokens of the request's rows in a batch."""
        return 2 * max(map(len, self.texts))


@dataclass(frozen=True)
class RewardRequest:
    """Request for the reward of several answers to one prompt; each row begins with the prompt."""

    answers: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Upper bound of the tokens of the request's rows in a batch."""
        return len(self.answers) * max(map(len, self.answers))


Request = (
    LossRequest
    | ChoiceRequest
    | GenerationRequest
    | TextRequest
    | RewardRequest
    | SimilarityRequest
)
# Requests to a head: rows that are scored as a unit, without a split into prompt and continuation.
HeadRequest = TextRequest | RewardRequest | SimilarityRequest


def prompt_and_answer_length(request: Request) -> tuple[tuple[int, ...], int]:
    """Return the token ids of the prompt and the number of tokens of the longest answer."""
    assert not isinstance(request, HeadRequest)  # a head's rows have no answers
    if isinstance(request, LossRequest):
        return request.example.input_ids, 0
    if isinstance(request, GenerationRequest):
        return request.prompt_ids, request.max_new_tokens
    return request.prompt_ids, max(len(branch.input_ids) for branch in request.branches)
