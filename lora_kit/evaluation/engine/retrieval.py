"""The baseline arm `retrieval`: answers of the most similar training examples, without a model.

Tasks of an embedding have the texts themselves compared instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_kit.data.rows import Row
from lora_kit.evaluation.engine.lexical import IDENTITY, is_lexical, lexical_outcomes
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.item import Graded, Item, Outcome, Task
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.scores import OF_HEADS
from lora_kit.evaluation.task_spec import CHOICE_KINDS
from lora_kit.recipe.sections import RETRIEVAL
from lora_kit.runtime.hashes import json_sha256


@dataclass(frozen=True)
class Retriever:
    """Nearest-neighbor retrieval of answers by TF-IDF (Salton & Buckley 1988).

    Attributes:
        vectorizer: vectorizer fitted on the training prompts.
        prompts: (rows, terms) sparse matrix of the training prompts.
        answers: answer of each training prompt.
        identity: digest of the training prompts and answers.
    """

    vectorizer: Any
    prompts: Any
    answers: tuple[str, ...]
    identity: str

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Retriever | None:
        """Fit a retriever on rows that end with an answer; `None` if there are none."""
        answered = [row for row in rows if row.has_answer]
        if not answered:
            return None
        # Imported here, since it takes a second that most evaluations do not need.
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
        prompts = [
            "\n\n".join(message.content for message in row.messages[:-1]) for row in answered
        ]
        answers = tuple(row.messages[-1].content for row in answered)
        identity = json_sha256([prompts, answers])
        return cls(vectorizer, vectorizer.fit_transform(prompts), answers, identity)

    def answer(self, items: Sequence[Item]) -> list[str]:
        """Return, for each item, the answer of the training example with the largest cosine."""
        similarity = self.vectorizer.transform(item.prompt for item in items) @ self.prompts.T
        nearest = np.asarray(similarity.argmax(axis=1)).ravel()
        return [self.answers[n] for n in nearest]

    def choose(self, answer: str, choices: Sequence[str]) -> int:
        """Return the index of the choice that equals the answer, or else is most similar to it."""
        same = [n for n, choice in enumerate(choices) if choice.strip() == answer.strip()]
        if same:
            return same[0]
        similarity = self.vectorizer.transform(choices) @ self.vectorizer.transform([answer]).T
        return int(similarity.toarray().ravel().argmax())


def retrieval_entries(
    retriever: Retriever, work: Sequence[Work]
) -> Iterator[tuple[str, list[tuple[str, Entry]]]]:
    """Yield, for each gain task that a text can answer, the key and the entries with that key."""
    for one in work:
        if one.suite.role != "gain":
            continue
        if is_lexical(one.task):
            yield _lexical_entries(one)
            continue
        if not _has_text_answer(one.task):
            continue
        key = one.key(RETRIEVAL, retriever.identity)
        answers = retriever.answer(one.task.items)
        yield (
            key,
            [
                (
                    key,
                    one.entry(
                        RETRIEVAL, item, _graded(retriever, one.task, item, answer), Outcome()
                    ),
                )
                for item, answer in zip(one.task.items, answers, strict=True)
            ],
        )


def _lexical_entries(work: Work) -> tuple[str, list[tuple[str, Entry]]]:
    key, task = work.key(RETRIEVAL, IDENTITY), work.task
    return key, [
        (key, work.entry(RETRIEVAL, item, task.grade(item, outcome), outcome))
        for item, outcome in zip(task.items, lexical_outcomes(task), strict=True)
    ]


def _has_text_answer(task: Task) -> bool:
    """Return true if items are scored by an answer; a likelihood cannot be retrieved."""
    kind = task.spec.kind
    has_choices = kind in CHOICE_KINDS and task.spec.score != "loss"
    has_target = kind in OF_HEADS and task.spec.score != "loss"
    return has_choices or has_target or kind in ("generation", "instructions")


def _graded(retriever: Retriever, task: Task, item: Item, answer: str) -> Graded:
    if item.answer is None:
        return task.grade(item, Outcome(text=answer))
    chosen = retriever.choose(answer, item.choices)
    return Graded(float(chosen == item.answer), item.choices[chosen])
