"""Differences of scores that the rounding of a dtype explains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from lora_kit.data.supervision import IGNORE_INDEX
from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer, compute_outcomes
from lora_kit.evaluation.requests import ChoiceRequest, LossRequest, Request
from lora_kit.modeling.precision import epsilon, in_tf32
from lora_kit.modeling.prefix import encode_prefix

# Largest difference of a log-likelihood in float32, in nats.
FLOAT32_NATS = 1e-3
# Largest ratio of a difference to that of rounding: over all probes, and on one of them.
MAX_RATIO, MAX_RATIO_OF_PROBE = 1.25, 2.0
# Times that rounding is measured.
DRAWS = 2
ALONE = BatchLayout(tree=False, prefix=False)


@dataclass(frozen=True)
class ProbeScores:
    """Scores of probes in one layout.

    Attributes:
        nats: log-likelihoods by probe and branch.
        states: by probe, the hidden states before the output head at the positions that predict
            scored tokens, (positions, hidden) float32; for a model that does not call its head as
            a module the log-likelihoods, (branches, 1).
    """

    nats: tuple[tuple[float, ...], ...]
    states: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class RoundingBound:
    """Scores of probes alone, and the distance from them that rounding explains.

    Attributes:
        alone: scores of each probe alone.
        rounding: root mean square of the relative change of the hidden states by rounding, by
            probe; `None` in float32.
    """

    alone: ProbeScores
    rounding: tuple[float, ...] | None

    @classmethod
    def measure(cls, scorer: Scorer, probes: Sequence[Request]) -> RoundingBound:
        """Score each branch of each probe in a row of its own; below float32, several times.

        Args:
            scorer: model with the arm active.
            probes: requests with likelihoods.
        """
        alone = _score_alone(scorer, probes)
        if scorer.model.dtype == torch.float32 and not in_tf32(scorer.model):
            return cls(alone, None)
        draws = []
        for seed in range(DRAWS):
            with _last_bits_changed(scorer.model, seed):
                draws.append(_distances(_score_alone(scorer, probes), alone))
        return cls(alone, tuple(_root_mean_square(one) for one in zip(*draws, strict=True)))

    @property
    def is_finite(self) -> bool:
        """True if the scores alone are finite, so that others can be compared with them."""
        return all(bool(states.isfinite().all()) for states in self.alone.states)

    def explains(self, found: ProbeScores) -> bool:
        """Return True if scores differ from those of the probes alone by rounding only."""
        if self.rounding is None:
            return all(
                abs(a - b) <= FLOAT32_NATS
                for one, other in zip(self.alone.nats, found.nats, strict=True)
                for a, b in zip(one, other, strict=True)
            )
        distances = _distances(found, self.alone)
        overall = _root_mean_square(self.rounding)
        return _root_mean_square(distances) <= MAX_RATIO * overall and all(
            distance <= MAX_RATIO_OF_PROBE * max(rounding, overall)
            for distance, rounding in zip(distances, self.rounding, strict=True)
        )


def score_probes(
    scorer: Scorer, probes: Sequence[Request], layout: BatchLayout, prefix_ids: tuple[int, ...]
) -> ProbeScores:
    """Score probes in one batch.

    Args:
        scorer: model with the arm active.
        probes: requests with likelihoods.
        layout: layout of the batch.
        prefix_ids: tokens that all probes begin with and that are encoded once, possibly none.
    """
    prefix = encode_prefix(scorer.model, prefix_ids, scorer.device) if prefix_ids else None
    with _states_before_head(scorer.model) as caught:
        outcomes = compute_outcomes(scorer, probes, layout, prefix)
    nats = tuple(outcome.log_likelihoods for outcome in outcomes)
    sizes = [_scored_tokens(probe) for probe in probes]
    if len(caught) == 1 and len(caught[0]) == sum(sizes):
        return ProbeScores(nats, torch.split(caught[0], sizes))
    return ProbeScores(nats, tuple(torch.tensor(one)[:, None] for one in nats))


def _score_alone(scorer: Scorer, probes: Sequence[Request]) -> ProbeScores:
    nats, states = [], []
    for probe in probes:
        rows: list[Request] = [probe]
        if isinstance(probe, ChoiceRequest):
            rows = [replace(probe, branches=(branch,)) for branch in probe.branches]
        parts = [score_probes(scorer, [row], ALONE, ()) for row in rows]
        nats.append(tuple(value for part in parts for value in part.nats[0]))
        states.append(torch.cat([part.states[0] for part in parts]))
    return ProbeScores(tuple(nats), tuple(states))


def _scored_tokens(probe: Request) -> int:
    if isinstance(probe, ChoiceRequest):
        return sum(branch.scored for branch in probe.branches)
    assert isinstance(probe, LossRequest)
    return sum(label != IGNORE_INDEX for label in probe.example.labels)


@contextmanager
def _states_before_head(model: Any) -> Iterator[list[torch.Tensor]]:
    """Yield a list that each call of the output head adds its input to, (positions, hidden)."""
    caught: list[torch.Tensor] = []

    def keep(_module: Any, inputs: tuple[torch.Tensor, ...], _output: Any) -> None:
        caught.append(inputs[0].float().flatten(0, -2))

    handle = model.get_output_embeddings().register_forward_hook(keep)
    try:
        yield caught
    finally:
        handle.remove()


@contextmanager
def _last_bits_changed(model: Any, seed: int) -> Iterator[None]:
    """Round the embeddings anew, after a change by half a unit in the last place, up or down."""
    generator = torch.Generator().manual_seed(seed)

    def change(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        signs = torch.randint(0, 2, output.shape, generator=generator).to(output.device) * 2 - 1
        half_unit = epsilon(model) / 2
        return (output.float() * (1 + half_unit * signs)).to(output.dtype)

    handle = model.get_input_embeddings().register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


def _distances(found: ProbeScores, alone: ProbeScores) -> tuple[float, ...]:
    """Return the root mean square of the states' relative differences, by probe."""
    return tuple(
        _root_mean_square(((a - b).norm(dim=-1) / b.norm(dim=-1)).tolist())
        for a, b in zip(found.states, alone.states, strict=True)
    )


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))
