"""The arm `retrieval` of an embedding: documents and pairs of texts compared by TF-IDF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lora_kit.evaluation.engine.embeddings import ranked_outcome
from lora_kit.evaluation.item import Item, Outcome, Task
from lora_kit.evaluation.requests import QueryRequest, SimilarityRequest

# Digest of the method in the key of its results; change it when other ranks can come out.
IDENTITY = "tf-idf-1"


def is_lexical(task: Task) -> bool:
    """Return true if the items of a task are compared texts, which need no training rows."""
    return isinstance(task.items[0].request, QueryRequest | SimilarityRequest)


def lexical_outcomes(task: Task) -> list[Outcome]:
    """Return the outcome of each item by the cosine of TF-IDF vectors (Salton & Buckley 1988).

    The frequencies of the terms are those of the documents, or of all texts of the pairs. An
    underscore separates words, as identifiers of programs are written.

    Args:
        task: task of the kind retrieval or similarity.
    """
    # Imported here, since it takes a second that most evaluations do not need.
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"[^\W_]+")
    if task.corpus is not None:
        return _ranked(vectorizer, task.items, task.corpus.texts)
    return _compared(vectorizer, task.items)


def _ranked(vectorizer: Any, items: Sequence[Item], texts: Sequence[str]) -> list[Outcome]:
    documents = vectorizer.fit_transform(texts)
    scores = (vectorizer.transform([item.prompt for item in items]) @ documents.T).toarray()
    requests = (item.request for item in items)
    return [
        ranked_outcome(torch.from_numpy(row), request.right, texts)
        for row, request in zip(scores, requests, strict=True)
        if isinstance(request, QueryRequest)
    ]


def _compared(vectorizer: Any, items: Sequence[Item]) -> list[Outcome]:
    vectors = vectorizer.fit_transform([text for item in items for text in item.texts])
    cosines = np.asarray(vectors[::2].multiply(vectors[1::2]).sum(axis=1)).ravel()
    return [Outcome(log_likelihoods=(float(cosine),)) for cosine in cosines]
