"""Scoring of one batch of requests: likelihoods, class scores, rewards and generated text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.backbone.devices import input_device
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.evaluation.engine.batching import rows_of
from lora_kit.evaluation.engine.choices import score_choice_trees
from lora_kit.evaluation.engine.embeddings import (
    EncodedCorpus,
    rank_documents,
    score_similarities,
)
from lora_kit.evaluation.engine.masked import score_masked
from lora_kit.evaluation.engine.rewards import score_rewards
from lora_kit.evaluation.engine.texts import score_texts
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.requests import (
    Branch,
    ChoiceRequest,
    GenerationRequest,
    LossRequest,
    MaskedRequest,
    QueryRequest,
    Request,
    RewardRequest,
    SampledRequest,
    SimilarityRequest,
    TextRequest,
)
from lora_kit.modeling.generation import generate_batch
from lora_kit.modeling.likelihood import supervised_tokens
from lora_kit.modeling.model_inputs import pad_examples, supervised_positions, to_device
from lora_kit.modeling.prefix import Prefix
from lora_kit.runtime.hashes import json_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Scorer:
    """Model and tokenizer that requests are scored with.

    Attributes:
        model: model with an arm active.
        tokenizer: tokenizer of the backbone.
        stop_token_ids: tokens on which generation ends.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        """Device of the inputs and outputs."""
        return input_device(self.model)


@dataclass(frozen=True)
class BatchLayout:
    """Layout of requests in a batch; the default is the fastest one.

    Attributes:
        tree: if true, one row holds all branches of a prompt; else each branch has its own row.
        prefix: if true, the prefix that requests share is encoded once.
    """

    tree: bool = True
    prefix: bool = True


def compute_outcomes(
    scorer: Scorer,
    requests: Sequence[Request],
    layout: BatchLayout,
    prefix: Prefix | None = None,
    documents: EncodedCorpus | None = None,
) -> list[Outcome]:
    """Score a batch of requests of one kind.

    Args:
        scorer: model and tokenizer.
        requests: requests of one kind, including the tokens of the prefix.
        layout: layout of the batch.
        prefix: shared prefix, encoded with the arm active.
        documents: corpus of queries, encoded with the arm active.

    Returns:
        One outcome per request, in order.
    """
    first = requests[0]
    pad = scorer.tokenizer.pad_token_id
    if isinstance(first, QueryRequest):
        queries = [r for r in requests if isinstance(r, QueryRequest)]
        assert documents is not None  # the task has a corpus
        return rank_documents(scorer.model, queries, documents, pad, scorer.device)
    if isinstance(first, SimilarityRequest):
        compared = [r for r in requests if isinstance(r, SimilarityRequest)]
        return score_similarities(scorer.model, compared, pad, scorer.device)
    if isinstance(first, MaskedRequest):
        masked = [r for r in requests if isinstance(r, MaskedRequest)]
        return score_masked(scorer.model, masked, pad, scorer.device)
    if isinstance(first, TextRequest):
        texts = [r for r in requests if isinstance(r, TextRequest)]
        return score_texts(scorer.model, texts, pad, scorer.device)
    if isinstance(first, RewardRequest):
        pairs = [r for r in requests if isinstance(r, RewardRequest)]
        return score_rewards(scorer.model, pairs, pad, scorer.device)
    if isinstance(first, GenerationRequest):
        return _generate(scorer, [r for r in requests if isinstance(r, GenerationRequest)], prefix)
    if isinstance(first, LossRequest):
        examples = [r.example for r in requests if isinstance(r, LossRequest)]
        return [
            Outcome((total,), (greedy,), "", len(example.input_ids))
            for (total, greedy), example in zip(
                _likelihoods(scorer, examples, prefix), examples, strict=True
            )
        ]
    choices = [r for r in requests if isinstance(r, ChoiceRequest)]
    scores = (
        score_choice_trees(scorer.model, choices, pad, scorer.device, prefix)
        if layout.tree
        else score_choice_rows(scorer, choices, prefix)
    )
    return [
        Outcome(tuple(t for t, _ in branches), tuple(g for _, g in branches), "", request.length)
        for branches, request in zip(scores, choices, strict=True)
    ]


def score_choice_rows(
    scorer: Scorer,
    requests: Sequence[ChoiceRequest],
    prefix: Prefix | None = None,
) -> list[list[tuple[float, bool]]]:
    """Score all branches of each request, each branch in a row of its own with its prompt.

    Returns:
        For each request and branch, the log-likelihood of the scored tokens in nats, and true if
        every one of them was the most likely token.
    """
    examples = [
        _branch_example(request, branch) for request in requests for branch in request.branches
    ]
    scores = iter(_likelihoods(scorer, examples, prefix))
    return [[next(scores) for _ in request.branches] for request in requests]


def _branch_example(request: ChoiceRequest, branch: Branch) -> Example:
    ids = (*request.prompt_ids, *branch.input_ids)
    unscored = len(ids) - branch.scored
    return Example(ids, (*[IGNORE_INDEX] * unscored, *ids[unscored:]))


def _likelihoods(
    scorer: Scorer, examples: Sequence[Example], prefix: Prefix | None
) -> list[tuple[float, bool]]:
    skipped = len(prefix) if prefix else 0
    rest = [Example(e.input_ids[skipped:], e.labels[skipped:]) for e in examples]
    batch = pad_examples(rest, scorer.tokenizer.pad_token_id)
    if prefix:
        batch["position_ids"] += skipped
        prefix_mask = torch.ones((len(rest), skipped), dtype=torch.int64)
        batch["attention_mask"] = torch.cat([prefix_mask, batch["attention_mask"]], dim=1)
    cache = prefix.repeated(len(rest)) if prefix else None
    _, rows, _ = supervised_positions(batch)
    nll, greedy, _ = supervised_tokens(scorer.model, to_device(batch, scorer.device), cache)
    # One transfer: on a GPU, a number that is read waits for it.
    scored = torch.stack([nll.double(), (~greedy).double()]).cpu()
    sums, missed = (
        torch.zeros(len(rest), dtype=torch.float64).index_add_(0, rows, one).tolist()
        for one in scored
    )
    return [(-total, not miss) for total, miss in zip(sums, missed, strict=True)]


def _generate(
    scorer: Scorer, requests: Sequence[GenerationRequest], prefix: Prefix | None
) -> list[Outcome]:
    pad = scorer.tokenizer.pad_token_id
    stops = sorted({stop for request in requests for stop in request.stop})
    options: dict[str, Any] = {}
    if stops:
        options |= {"stop_strings": stops, "tokenizer": scorer.tokenizer}
    rows = [request for request in requests for _ in range(rows_of(request))]
    limit = max(request.max_new_tokens for request in requests)
    with _sampling(requests[0], scorer.device) as sampled:
        new = generate_batch(
            scorer.model,
            [request.prompt_ids for request in rows],
            scorer.stop_token_ids,
            pad,
            limit,
            prefix=prefix,
            **(options | sampled),
        ).cpu()  # at once: each number that is read from a GPU waits for it
    texts = scorer.tokenizer.batch_decode(new, skip_special_tokens=True)
    counts = (new != pad).sum(dim=1).tolist()
    # A row that has ended is padded, unless no row needed the last possible token.
    ends = torch.tensor([*scorer.stop_token_ids, pad])
    cut = (~torch.isin(new[:, -1], ends) & (new.shape[1] == limit)).tolist()
    outcomes = [
        generated(request, text, int(count), is_cut)
        for text, request, count, is_cut in zip(texts, rows, counts, cut, strict=True)
    ]
    by_row = iter(outcomes)
    return [joined(request, list(islice(by_row, rows_of(request)))) for request in requests]


def generated(request: GenerationRequest, text: str, tokens: int, is_cut: bool | None) -> Outcome:
    """Return the outcome of one generated text.

    Args:
        request: the request.
        text: generated text, with what follows a stop text.
        tokens: number of generated tokens.
        is_cut: true if generation ended at `max_new_tokens`; `None` if that is not known.
    """
    answer = until_stop_text(text, request.stop)
    cut_off = () if is_cut is None else (is_cut and answer == text,)
    return Outcome(text=answer, tokens=len(request.prompt_ids) + tokens, cut_off=cut_off)


def joined(request: GenerationRequest, answers: Sequence[Outcome]) -> Outcome:
    """Return the outcome of a request from those of its samples."""
    if not isinstance(request, SampledRequest):
        return answers[0]
    texts = tuple(one.text for one in answers)
    cut_off = tuple(is_cut for one in answers for is_cut in one.cut_off)
    return Outcome(
        text=texts[0],
        tokens=sum(one.tokens for one in answers),
        samples=texts,
        cut_off=cut_off if len(cut_off) == len(answers) else (),
    )


@contextmanager
def _sampling(first: GenerationRequest, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield the options of a batch's sampling, with torch's random state seeded meanwhile.

    The random numbers depend on the seed and the batch alone, so that base and adapter draw by the
    same ones.
    """
    if not isinstance(first, SampledRequest):
        yield {}
        return
    drawn = first.sampling
    digest = json_sha256([drawn.seed, list(first.prompt_ids)])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(digest[:8], 16))
        yield {
            "do_sample": True,
            "temperature": drawn.temperature,
            "top_p": drawn.top_p,
            "top_k": 0,
        }


def until_stop_text(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop text."""
    ends = [text.index(stop) for stop in stops if stop and stop in text]
    return text[: min(ends, default=len(text))]
