"""Items of a token classification, and grading of the tags that a head predicts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lora_kit.backbone.heads import HeadOutputs
from lora_kit.data.entities import OUTSIDE, entities_of, write_entities
from lora_kit.data.word_tokens import encode_words
from lora_kit.evaluation.item import Graded, GradeFunction, Item, Outcome
from lora_kit.evaluation.requests import TagRequest
from lora_kit.evaluation.target_rows import TargetRow
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.runtime.errors import DataError
from lora_kit.statistics.entities import equal_entities

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tag_requests(
    rows: Sequence[TargetRow],
    _: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> list[tuple[TagRequest, bool]]:
    """Return the request of each row, and true if its text was truncated.

    Args:
        rows: rows with words.
        tokenizer: fast tokenizer of the backbone.
        max_length: maximum tokens of a text.

    Raises:
        BackboneError: if the tokenizer is not a fast one.
    """
    words = [row.row.words for row in rows]
    return [
        (TagRequest(one.input_ids, own, one.starts), one.truncated)
        for own, one in zip(words, encode_words(words, tokenizer, max_length), strict=True)
    ]


def tag_item(
    row: TargetRow, text: str, request: TagRequest, spec: TaskSpec, outputs: HeadOutputs
) -> Item:
    """Return the item of a row.

    Raises:
        DataError: if the head does not have a tag of the row.
    """
    tags = row.row.tags or ()
    unknown = sorted(set(tags) - set(outputs.names))
    if unknown:
        raise DataError(
            f"{row.id}: the head was not trained on a tag of this item of task {spec.name} (got "
            f"{unknown[0]!r}). Fix: use some of {', '.join(outputs.names)}"
        )
    return Item(
        id=row.id,
        cluster=row.cluster,
        prompt=text,
        reference=write_entities(entities_of(tags), request.words),
        request=request,
        slices=row.slices,
        choices=outputs.names,
        tags=tags,
    )


def grade_tag_items(items: Sequence[Item], spec: TaskSpec) -> GradeFunction:
    """Return the grading of a task.

    Raises:
        DataError: if no item has an entity.
    """
    if all(set(item.tags) <= {OUTSIDE} for item in items):
        raise DataError(
            f"task {spec.name}: source: no item has an entity (got the tag {OUTSIDE} only in "
            f"{len(items)} items). Fix: add items with entities"
        )
    return partial(grade_tags, score=str(spec.item_score))


def grade_tags(item: Item, outcome: Outcome, *, score: str) -> Graded:
    """Compute `jaccard` and `exact_match` of the entities, and `accuracy` and `loss` of the words.

    The predicted tag of a word is the most likely one, and `O` for a word without a token. The
    Jaccard index is the number of right entities divided by the number of those that are right or
    predicted; 1 if there are none of either. The loss, in nats per word, is that of the words with
    a token. An item with a NaN has no score.

    Args:
        item: item with its tags.
        outcome: log-likelihoods of the tags of each word with a token.
        score: name of the score.
    """
    request, names = item.request, item.choices
    assert isinstance(request, TagRequest)  # items of the kind have such requests
    likelihoods = np.array(outcome.log_likelihoods).reshape(-1, len(names))
    if np.isnan(likelihoods).any():
        return Graded(None, "")
    read = [number for number, start in enumerate(request.starts) if start is not None]
    tags = [OUTSIDE] * len(request.words)
    for number, row in zip(read, likelihoods, strict=True):
        tags[number] = names[int(row.argmax())]
    predicted, true = entities_of(tags), entities_of(item.tags)
    right = equal_entities(predicted, true)
    either = len(predicted) + len(true) - right
    measures = {
        "jaccard": right / either if either else 1.0,
        "exact_match": float(predicted == true),
        "accuracy": float(np.mean([a == b for a, b in zip(tags, item.tags, strict=True)])),
    }
    if read:
        answers = [names.index(item.tags[number]) for number in read]
        measures["loss"] = -float(likelihoods[np.arange(len(read)), answers].mean())
    return Graded(measures.get(score), write_entities(predicted, request.words), measures)
