"""The arm `retrieval`: the answer of the most similar training example, no model at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from lora_kit.data.rows import Row
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.item import Graded, Item, Outcome, Task
from lora_kit.evaluation.ledger import Entry

RETRIEVAL = "retrieval"


@dataclass(frozen=True)
class Retriever:
    """Training prompts as TF-IDF vectors (Salton & Buckley 1988), and their answers."""

    vectorizer: TfidfVectorizer
    prompts: Any
    answers: tuple[str, ...]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Retriever | None:
        """Of the rows that have a prompt; `None` if none has."""
        asked = [row for row in rows if row.answered]
        if not asked:
            return None
        vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
        prompts = vectorizer.fit_transform(
            "\n\n".join(message.content for message in row.messages[:-1]) for row in asked
        )
        return cls(vectorizer, prompts, tuple(row.messages[-1].content for row in asked))

    @property
    def identity(self) -> str:
        """Digest of what it answers from."""
        described = f"{self.prompts.data.tobytes()!r}\0".encode() + "\0".join(self.answers).encode()
        return hashlib.sha256(described).hexdigest()

    def answer(self, items: Sequence[Item]) -> list[str]:
        """For each item the answer of the training example with the largest cosine."""
        similarity = self.vectorizer.transform(item.prompt for item in items) @ self.prompts.T
        nearest = np.asarray(similarity.argmax(axis=1)).ravel()
        return [self.answers[n] for n in nearest]

    def choose(self, answer: str, choices: Sequence[str]) -> int:
        """The choice that is the answer, or has the most in common with it."""
        same = [n for n, choice in enumerate(choices) if choice.strip() == answer.strip()]
        if same:
            return same[0]
        similarity = self.vectorizer.transform(choices) @ self.vectorizer.transform([answer]).T
        return int(similarity.toarray().ravel().argmax())


def retrieved(
    retriever: Retriever, work: Sequence[Work]
) -> Iterator[tuple[str, list[tuple[str, Entry]]]]:
    """For every gain task that a text can be an answer to its key, and entries with that key."""
    for one in work:
        if one.suite.role != "gain" or not _answerable(one.task):
            continue
        key = one.key(RETRIEVAL, retriever.identity)
        answers = retriever.answer(one.task.items)
        yield (
            key,
            [
                (key, _entry(one, item, _graded(retriever, one.task, item, answer)))
                for item, answer in zip(one.task.items, answers, strict=True)
            ],
        )


def _answerable(task: Task) -> bool:
    """A likelihood cannot be retrieved, only an answer."""
    if task.spec.kind in ("generation", "instructions"):
        return True
    by_choice = task.spec.kind in ("multiple_choice", "classification")
    return by_choice and task.spec.score != "loss"


def _graded(retriever: Retriever, task: Task, item: Item, answer: str) -> Graded:
    if item.answer is None:
        return task.grade(item, Outcome(text=answer))
    chosen = retriever.choose(answer, item.choices)
    return Graded(float(chosen == item.answer), item.choices[chosen])


def _entry(work: Work, item: Item, graded: Graded) -> Entry:
    return Entry(
        arm=RETRIEVAL,
        suite=work.suite.name,
        task=work.task.spec.name,
        item=item.id,
        cluster=item.cluster,
        score=graded.score,
        output=graded.output,
        prompt=item.prompt,
        reference=item.reference,
        tokens=0,
        seconds=0.0,
        slices=item.slices,
        choices=item.choices,
        answer=item.answer,
    )
