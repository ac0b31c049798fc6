"""Check that a server applies the adapter, before anything is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer, compute_outcomes
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.requests import GenerationRequest, Request
from lora_kit.modeling.modes import adapter_disabled, eval_mode
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import EvaluationError

# Requests that are asked twice, and tokens that each generates.
PROBES = 8
PROBE_TOKENS = 24


@dataclass(frozen=True)
class ProbeAnswers:
    """Outcomes of base and adapter on the same requests."""

    requests: tuple[Request, ...]
    base: tuple[Outcome, ...]
    adapter: tuple[Outcome, ...]


def probe_requests(work: Sequence[Work]) -> tuple[Request, ...]:
    """Return requests to compare models by: the first ones of each task in turn."""
    ordered = [
        one.task.items[n].request for n in range(PROBES) for one in work if n < len(one.task.items)
    ]
    return tuple(
        replace(request, max_new_tokens=min(request.max_new_tokens, PROBE_TOKENS))
        if isinstance(request, GenerationRequest)
        else request
        for request in ordered[:PROBES]
    )


def answer_probes(scorer: Scorer, requests: Sequence[Request]) -> ProbeAnswers:
    """Answer requests by a model in this process, with the adapter and without.

    Args:
        scorer: backbone with the adapter attached.
        requests: requests of any kinds.
    """

    def answer() -> tuple[Outcome, ...]:
        layout = BatchLayout(tree=False, prefix=False)
        return tuple(compute_outcomes(scorer, [one], layout)[0] for one in requests)

    with eval_mode(scorer.model):
        with adapter_disabled(scorer.model):
            base = answer()
        return ProbeAnswers(tuple(requests), base, answer())


def require_difference(where: str, answers: ProbeAnswers) -> None:
    """Refuse a server whose answers for base and adapter are equal to the last digit.

    Raises:
        EvaluationError: if all answers are equal.
    """
    if all(map(_same, answers.base, answers.adapter)):
        raise EvaluationError(
            f"{where}: answers for the adapter as for the base (got equal answers to "
            f"{len(answers.requests)} requests). Fix: look in the server's log whether it loads "
            "the adapter; an adapter that was not trained has no effect"
        )


def require_adapter(where: str, known: ProbeAnswers, served: Sequence[Outcome]) -> None:
    """Refuse a server that answers like the base rather than like the adapter.

    Args:
        where: server and model, for messages.
        known: answers of base and adapter in this process.
        served: the server's answers to the same requests.

    Raises:
        EvaluationError: if the answers are nearer to those of the base.
    """
    to_base = sum(map(_distance, known.base, served))
    to_adapter = sum(map(_distance, known.adapter, served))
    if to_base < to_adapter:
        raise EvaluationError(
            f"{where}: answers like the base, not like the adapter (got a distance of "
            f"{to_base:.3g} from the base and of {to_adapter:.3g} from the adapter, over "
            f"{len(served)} requests). Fix: let the server load the adapter, or name the model "
            "under which it serves it with --served-model"
        )
    if to_base == to_adapter:
        say(
            f"{where}: answers of base and adapter do not differ on {len(served)} requests; that "
            "the server applies the adapter is not shown"
        )


def _same(one: Outcome, other: Outcome) -> bool:
    return (one.log_likelihoods, one.text) == (other.log_likelihoods, other.text)


def _distance(one: Outcome, other: Outcome) -> float:
    """Return the difference of log-likelihoods, in nats, or 1 for other texts."""
    if one.error or other.error:
        return 0.0
    if one.log_likelihoods:
        pairs = zip(one.log_likelihoods, other.log_likelihoods, strict=True)
        return sum(abs(a - b) for a, b in pairs)
    return float(one.text != other.text)
