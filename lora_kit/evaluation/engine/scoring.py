"""What a model makes of one batch of requests: likelihoods and generated text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.data.tokenization import IGNORED, Example
from lora_kit.evaluation.engine.choices import in_one_row
from lora_kit.evaluation.engine.classes import classified
from lora_kit.evaluation.engine.prefix import Prefix
from lora_kit.evaluation.engine.rewards import rewarded
from lora_kit.evaluation.item import (
    Branch,
    ChoiceRequest,
    ClassRequest,
    GenerationRequest,
    LossRequest,
    Outcome,
    Request,
    RewardRequest,
)
from lora_kit.modeling.generation import generate_batch
from lora_kit.modeling.likelihood import pad_examples, supervised_tokens, to_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Scorer:
    """What scoring needs besides the requests.

    Attributes:
        model: with the adapter on or off, as the arm wants it.
        tokenizer: of the backbone.
        stop_token_ids: generation ends on any of them.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device


@dataclass(frozen=True)
class BatchLayout:
    """How requests are laid out: the fast way, unless the model does not bear it.

    Attributes:
        tree: all branches of a prompt in one row.
        prefix: what requests share is encoded once.
    """

    tree: bool = True
    prefix: bool = True


def outcomes(
    scorer: Scorer, requests: Sequence[Request], way: BatchLayout, prefix: Prefix | None = None
) -> list[Outcome]:
    """What the model makes of requests of one kind.

    Args:
        scorer: the model.
        requests: of one kind; their whole tokens, the prefix included.
        way: how they are laid out.
        prefix: encoded by this model, as it is now.
    """
    first = requests[0]
    pad = scorer.tokenizer.pad_token_id
    if isinstance(first, ClassRequest):
        texts = [r for r in requests if isinstance(r, ClassRequest)]
        return classified(scorer.model, texts, pad, scorer.device)
    if isinstance(first, RewardRequest):
        pairs = [r for r in requests if isinstance(r, RewardRequest)]
        return rewarded(scorer.model, pairs, pad, scorer.device)
    if isinstance(first, GenerationRequest):
        return _generated(scorer, [r for r in requests if isinstance(r, GenerationRequest)], prefix)
    if isinstance(first, LossRequest):
        examples = [r.example for r in requests if isinstance(r, LossRequest)]
        return [
            Outcome((total,), (greedy,), "", len(example.input_ids))
            for (total, greedy), example in zip(
                _likelihoods(scorer, examples, prefix), examples, strict=True
            )
        ]
    choices = [r for r in requests if isinstance(r, ChoiceRequest)]
    found = (
        in_one_row(scorer.model, choices, pad, scorer.device, prefix)
        if way.tree
        else row_by_row(scorer, choices, prefix)
    )
    return [
        Outcome(tuple(t for t, _ in branches), tuple(g for _, g in branches), "", request.length)
        for branches, request in zip(found, choices, strict=True)
    ]


def row_by_row(
    scorer: Scorer,
    requests: Sequence[ChoiceRequest],
    prefix: Prefix | None = None,
) -> list[list[tuple[float, bool]]]:
    """Log-likelihood (nats) and greediness of each branch, each in a row with its prompt."""
    examples = [_alone(request, branch) for request in requests for branch in request.branches]
    found = iter(_likelihoods(scorer, examples, prefix))
    return [[next(found) for _ in request.branches] for request in requests]


def _alone(request: ChoiceRequest, branch: Branch) -> Example:
    ids = (*request.prompt_ids, *branch.input_ids)
    unscored = len(ids) - branch.scored
    return Example(ids, (*[IGNORED] * unscored, *ids[unscored:]))


def _likelihoods(
    scorer: Scorer, examples: Sequence[Example], prefix: Prefix | None
) -> list[tuple[float, bool]]:
    skipped = len(prefix) if prefix else 0
    rest = [Example(e.input_ids[skipped:], e.labels[skipped:]) for e in examples]
    batch = pad_examples(rest, scorer.tokenizer.pad_token_id)
    if prefix:
        batch["position_ids"] += skipped
        behind = torch.ones((len(rest), skipped), dtype=torch.int64)
        batch["attention_mask"] = torch.cat([behind, batch["attention_mask"]], dim=1)
    cache = prefix.repeated(len(rest)) if prefix else None
    nll, greedy, rows = supervised_tokens(scorer.model, to_device(batch, scorer.device), cache)
    sums = torch.zeros(len(rest), dtype=torch.float64, device=scorer.device)
    missed = torch.zeros(len(rest), dtype=torch.float64, device=scorer.device)
    sums.index_add_(0, rows, nll.double())
    missed.index_add_(0, rows, (~greedy).double())
    return [(-float(total), not float(miss)) for total, miss in zip(sums, missed, strict=True)]


def _generated(
    scorer: Scorer, requests: Sequence[GenerationRequest], prefix: Prefix | None
) -> list[Outcome]:
    pad = scorer.tokenizer.pad_token_id
    stops = sorted({stop for request in requests for stop in request.stop})
    options: dict[str, Any] = {}
    if prefix:
        options["past_key_values"] = prefix.repeated(len(requests))
    if stops:
        options |= {"stop_strings": stops, "tokenizer": scorer.tokenizer}
    new = generate_batch(
        scorer.model,
        [request.prompt_ids for request in requests],
        scorer.stop_token_ids,
        pad,
        max(request.max_new_tokens for request in requests),
        prefix_length=len(prefix) if prefix else 0,
        **options,
    )
    texts = scorer.tokenizer.batch_decode(new, skip_special_tokens=True)
    counts = (new != pad).sum(dim=1).tolist()
    return [
        Outcome(text=_cut(text, request.stop), tokens=len(request.prompt_ids) + int(count))
        for text, request, count in zip(texts, requests, counts, strict=True)
    ]


def _cut(text: str, stops: Sequence[str]) -> str:
    """Up to the first text that generation stops at."""
    ends = [text.index(stop) for stop in stops if stop and stop in text]
    return text[: min(ends, default=len(text))]
