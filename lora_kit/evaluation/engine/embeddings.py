"""Ranks of documents, and cosines of texts, by the vectors of an embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_kit.evaluation.item import Corpus, Outcome
from lora_kit.evaluation.requests import QueryRequest, SimilarityRequest
from lora_kit.modeling.embeddings import embed_rows

# Tokens of a batch of documents, padding included.
DOCUMENT_TOKENS = {"cpu": 2048, "cuda": 32768}


@dataclass(frozen=True, eq=False)
class EncodedCorpus:
    """Documents of a task as one arm embeds them.

    Attributes:
        vectors: (documents, hidden size) float32, of length 1.
        texts: text of each document.
    """

    vectors: torch.Tensor
    texts: tuple[str, ...]

    @classmethod
    def of(
        cls, model: Any, corpus: Corpus, pad_token_id: int, device: torch.device
    ) -> EncodedCorpus:
        """Embed all documents with the arm that is active."""
        limit = DOCUMENT_TOKENS.get(device.type, DOCUMENT_TOKENS["cpu"])
        vectors = embed_rows(model, corpus.rows, corpus.pooling, pad_token_id, device, limit)
        return cls(vectors, corpus.texts)


def rank_documents(
    model: Any,
    requests: Sequence[QueryRequest],
    documents: EncodedCorpus,
    pad_token_id: int,
    device: torch.device,
) -> list[Outcome]:
    """Rank the right documents of each query by the cosine among all documents.

    Args:
        model: model with the arm active.
        requests: tokenized queries, all with the same pooling.
        documents: documents as this arm embeds them.
        pad_token_id: token that fills shorter rows.
        device: device of the model.
    """
    rows = [request.input_ids for request in requests]
    size = len(rows) * max(map(len, rows))
    vectors = embed_rows(model, rows, requests[0].pooling, pad_token_id, device, size)
    cosines = (vectors @ documents.vectors.T).cpu()
    return [
        ranked_outcome(scores, request.right, documents.texts, request.length)
        for scores, request in zip(cosines, requests, strict=True)
    ]


def ranked_outcome(
    scores: torch.Tensor, right: Sequence[int], texts: Sequence[str], tokens: int = 0
) -> Outcome:
    """Return the ranks of the right documents, from 1, and the text of the first document.

    Wrong documents of the same score rank before right ones, so that a constant score gains
    nothing.

    Args:
        scores: (documents,) score of each document; a NaN gives ranks that are NaN.
        right: indexes of the right documents.
        texts: text of each document.
        tokens: tokens of the query.
    """
    if bool(scores.isnan().any()):
        return Outcome(log_likelihoods=(float("nan"),) * len(right), tokens=tokens)
    chosen = list(right)
    own = scores[chosen].sort(descending=True).values
    others = scores.clone()
    others[chosen] = -torch.inf
    before = (others[None, :] >= own[:, None]).sum(dim=1)
    # The right documents with a higher score come before as well.
    ranks = before + torch.arange(1, len(own) + 1)
    best = int(others.argmax()) if int(ranks[0]) > 1 else chosen[int(scores[chosen].argmax())]
    return Outcome(
        log_likelihoods=tuple(float(rank) for rank in ranks.tolist()),
        text=texts[best],
        tokens=tokens,
    )


def score_similarities(
    model: Any, requests: Sequence[SimilarityRequest], pad_token_id: int, device: torch.device
) -> list[Outcome]:
    """Compute the cosine of the two texts of each request.

    Args:
        model: model with the arm active.
        requests: pairs of tokenized texts, all with the same pooling.
        pad_token_id: token that fills shorter rows.
        device: device of the model.
    """
    rows = [ids for request in requests for ids in request.texts]
    size = len(rows) * max(map(len, rows))
    vectors = embed_rows(model, rows, requests[0].pooling, pad_token_id, device, size)
    cosines = (vectors[::2] * vectors[1::2]).sum(dim=1).double().tolist()
    return [
        Outcome(log_likelihoods=(cosine,), tokens=sum(map(len, request.texts)))
        for cosine, request in zip(cosines, requests, strict=True)
    ]
