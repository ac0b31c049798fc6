"""Tasks of an embedding: queries with their documents, and pairs of texts with a similarity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, get_args

from lora_kit.backbone.heads import HeadOutputs
from lora_kit.data.labelled import encode_texts
from lora_kit.data.scored import write_numbers
from lora_kit.evaluation.embedding_grading import grade_ranks, grade_similarity
from lora_kit.evaluation.head_tasks import SupportedTasks
from lora_kit.evaluation.item import Corpus, Item, Task
from lora_kit.evaluation.reading import read_rows
from lora_kit.evaluation.requests import QueryRequest, SimilarityRequest
from lora_kit.evaluation.scores import SCORES, TaskKind
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.target_rows import TargetRow
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.tasks import select_rows
from lora_kit.recipe.embedding import Pooling
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDING_TASKS = SupportedTasks(
    head="an embedding",
    kinds=("retrieval", "similarity"),
    example="docstring-code",
    scores=(None, *SCORES["retrieval"], *SCORES["similarity"]),
    no_score="vectors have no such score",
    retains=True,
)
Tokenize = Callable[[Sequence[str]], list[tuple[int, ...]]]


def build_embedding_task(
    suite: Suite, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, outputs: HeadOutputs
) -> Task:
    """Read, select and tokenize a task's items, and the documents of a retrieval task.

    Args:
        suite: suite of the task.
        spec: task of the kind retrieval or similarity.
        tokenizer: tokenizer of the backbone.
        outputs: pooling of the model.

    Raises:
        EvaluationError: if an embedding does not support the task.
        DataError: if the source is invalid.
    """
    EMBEDDING_TASKS.require(suite, spec)
    pooling = next(name for name in get_args(Pooling) if name == outputs.pooling)
    truncated: Counter[bool] = Counter()

    def tokenize(texts: Sequence[str]) -> list[tuple[int, ...]]:
        encoded = encode_texts(texts, tokenizer, spec.max_length)
        truncated.update(is_truncated for _, is_truncated in encoded)
        return [ids for ids, _ in encoded]

    rows = read_rows(spec)
    selected = select_rows(spec, suite.seed, rows)[0]
    task = BUILDERS[spec.kind](spec, rows, selected, tokenize, pooling)
    if truncated[True]:
        say(
            f"{suite.name}/{spec.name}: {truncated[True]} of {truncated.total()} texts are "
            f"truncated to max_length {spec.max_length}; raise it if the backbone supports more"
        )
    return task


def _retrieval_task(
    spec: TaskSpec,
    rows: Sequence[TargetRow],
    selected: Sequence[TargetRow],
    tokenize: Tokenize,
    pooling: Pooling,
) -> Task:
    """Return queries with the documents of all rows, negatives included, as their corpus.

    Rows with the same query are one item, which several documents answer.
    """
    numbers: dict[str, int] = {}
    right: dict[str, list[int]] = {}
    for one in rows:
        query, *documents = (m.content for m in (*one.row.messages, *one.row.rejected))
        places = [numbers.setdefault(text, len(numbers)) for text in documents]
        right.setdefault(query, []).append(places[0])
    if len(numbers) < 2:
        raise DataError(
            f"task {spec.name}: source: a retrieval needs several documents (got {len(numbers)} "
            f"in {spec.source}). Fix: add rows"
        )
    texts = tuple(numbers)
    corpus = Corpus(texts, tuple(tokenize(texts)), pooling)
    queries: dict[str, TargetRow] = {}
    for one in selected:
        queries.setdefault(one.row.messages[0].content, one)
    items = []
    for (query, one), ids in zip(queries.items(), tokenize(list(queries)), strict=True):
        answers = tuple(dict.fromkeys(right[query]))
        items.append(
            Item(
                id=one.id,
                cluster=one.cluster,
                prompt=query,
                reference="\n\n".join(texts[number] for number in answers),
                request=QueryRequest(ids, answers, pooling),
                slices=one.slices,
                references=tuple(texts[number] for number in answers),
            )
        )
    grade = partial(grade_ranks, score=str(spec.score_name))
    return Task(spec, items, grade, _unused(selected), corpus)


def _similarity_task(
    spec: TaskSpec,
    _: Sequence[TargetRow],
    selected: Sequence[TargetRow],
    tokenize: Tokenize,
    pooling: Pooling,
) -> Task:
    """Return pairs of texts with their score.

    Raises:
        DataError: if all pairs have the same score, so that there is no order.
    """
    first, second = (tokenize([r.row.messages[side].content for r in selected]) for side in (0, 1))
    targets = [dict(one.row.values or {}) for one in selected]
    numbers = [number for values in targets for number in values.values()]
    if min(numbers) == max(numbers):
        raise DataError(
            f"task {spec.name}: source: all pairs have the same score (got {numbers[0]:g} in "
            f"{len(numbers)} pairs). Fix: add pairs with other scores"
        )
    items = [
        Item(
            id=one.id,
            cluster=one.cluster,
            prompt="\n\n".join(message.content for message in one.row.messages),
            reference=write_numbers(values),
            request=SimilarityRequest(texts, pooling),
            slices=one.slices,
            targets=values,
            texts=tuple(message.content for message in one.row.messages),
        )
        for one, values, texts in zip(
            selected, targets, zip(first, second, strict=True), strict=True
        )
    ]
    grade = partial(grade_similarity, low=min(numbers), high=max(numbers))
    return Task(spec, items, grade, _unused(selected))


def _unused(rows: Sequence[TargetRow]) -> Counter[str]:
    return Counter(name for row in rows for name in row.unused)


BUILDERS: Mapping[TaskKind, Callable[..., Task]] = {
    "retrieval": _retrieval_task,
    "similarity": _similarity_task,
}
