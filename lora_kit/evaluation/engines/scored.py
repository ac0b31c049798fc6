"""Token sequences of a request whose log-likelihoods an engine is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from lora_kit.data.supervision import IGNORE_INDEX
from lora_kit.evaluation.engines.connection import RefusedError
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.requests import ChoiceRequest, GenerationRequest, LossRequest, Request
from lora_kit.runtime.errors import EvaluationError


@dataclass(frozen=True)
class Scored:
    """Tokens whose likelihood is asked for, after a context."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]


# Log-likelihood in nats, and true if each token was the most likely one.
Likelihood = tuple[float, bool]


def read_tokens(request: Request) -> tuple[int, ...]:
    """Return the tokens that a request begins with; all of them for a loss."""
    if isinstance(request, LossRequest):
        return tuple(request.example.input_ids)
    if isinstance(request, ChoiceRequest | GenerationRequest):
        return request.prompt_ids
    return ()


def scored_branches(request: ChoiceRequest) -> list[Scored]:
    """Return the tokens of each branch that are scored, after all before them."""
    rows = [((*request.prompt_ids, *one.input_ids), one.scored) for one in request.branches]
    return [Scored(ids[:-scored], ids[-scored:]) for ids, scored in rows]


def supervised_runs(request: LossRequest) -> list[Scored]:
    """Return the runs of an example's supervised tokens, each after all tokens before it."""
    ids, labels = request.example.input_ids, request.example.labels
    # The first token of a text is predicted from nothing.
    supervised = [n > 0 and label != IGNORE_INDEX for n, label in enumerate(labels)]
    runs = [
        [n for n, _ in group]
        for is_one, group in groupby(enumerate(supervised), itemgetter(1))
        if is_one
    ]
    return [Scored(tuple(ids[: run[0]]), tuple(ids[run[0] : run[-1] + 1])) for run in runs]


def answered(
    request: Request,
    name: str,
    generate: Callable[[GenerationRequest], Outcome],
    likelihoods: Callable[[list[Scored]], list[Likelihood]],
) -> Outcome:
    """Return the outcome of a request; one with `error` if the program refuses it.

    Args:
        request: the request.
        name: name of the program or model, for messages.
        generate: function that generates an answer.
        likelihoods: function that returns the log-likelihoods of tokens after their contexts.

    Raises:
        EvaluationError: for a request to a head, which no such program answers.
    """
    try:
        if isinstance(request, GenerationRequest):
            return generate(request)
        if isinstance(request, ChoiceRequest):
            totals, greedy = zip(*likelihoods(scored_branches(request)), strict=True)
            return Outcome(totals, greedy, "", request.length)
        if isinstance(request, LossRequest):
            runs = likelihoods(supervised_runs(request))
            total, is_greedy = sum(nats for nats, _ in runs), all(best for _, best in runs)
            return Outcome((total,), (is_greedy,), "", request.length)
    except RefusedError as error:
        return Outcome(error=f"{name}: {error}")
    raise EvaluationError(
        f"{name}: answers no such request (got {type(request).__name__}). Fix: remove the arm, or "
        "the task"
    )
