"""Tasks of a masked language model: texts of which each token is masked in turn."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from lora_kit.backbone.heads import HeadOutputs
from lora_kit.data.labelled import encode_texts
from lora_kit.data.templates import special_token_ids
from lora_kit.evaluation.head_tasks import SupportedTasks
from lora_kit.evaluation.item import Graded, Item, Outcome, Task
from lora_kit.evaluation.reading import Conversation
from lora_kit.evaluation.requests import MaskedRequest
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.tasks import select_rows
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASKED_TASKS = SupportedTasks(
    head="a masked language model",
    kinds=("loss",),
    example="library-text",
    scores=(None,),
    no_score="pseudo-likelihoods have no such score",
    retains=True,
)


def build_masked_task(
    suite: Suite, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, _: HeadOutputs
) -> Task:
    """Read, select and tokenize the texts of a task.

    Args:
        suite: suite of the task.
        spec: task of the kind loss.
        tokenizer: tokenizer of the backbone, with a mask token.

    Raises:
        EvaluationError: if a masked language model does not support the task.
        DataError: if the source is invalid, or a row is no text.
    """
    MASKED_TASKS.require(suite, spec)
    rows: list[Conversation] = select_rows(spec, suite.seed)[0]
    texts = [_text_of(row, spec) for row in rows]
    encoded = encode_texts(texts, tokenizer, spec.max_length)
    items = [
        _item(row, text, ids, spec, tokenizer)
        for row, text, (ids, _) in zip(rows, texts, encoded, strict=True)
    ]
    name, truncated = f"{suite.name}/{spec.name}", sum(one for _, one in encoded)
    if truncated:
        say(
            f"{name}: {truncated} of {len(rows)} texts are truncated to max_length "
            f"{spec.max_length}; each token of a text is a forward pass"
        )
    tokens = sum(len(_request(one).positions) for one in items)
    say(f"{name}: {tokens:,} tokens of {len(rows)} texts are masked in turn, for each arm")
    return Task(
        spec, items, grade_pseudo_likelihood, Counter(name for row in rows for name in row.unused)
    )


def _request(item: Item) -> MaskedRequest:
    assert isinstance(item.request, MaskedRequest)  # the request of such an item
    return item.request


def _text_of(row: Conversation, spec: TaskSpec) -> str:
    if row.row.text is None:
        raise DataError(
            f"{row.id}: a masked language model reads texts (got a conversation). Fix: give task "
            f'{spec.name} rows of {{"text": "..."}}'
        )
    return row.row.text


def _item(
    row: Conversation,
    text: str,
    ids: tuple[int, ...],
    spec: TaskSpec,
    tokenizer: PreTrainedTokenizerBase,
) -> Item:
    special = special_token_ids(tokenizer)
    positions = tuple(n for n, token in enumerate(ids) if token not in special)
    if not positions:
        raise DataError(
            f"{row.id}: no token to score within max_length of task {spec.name} (got "
            f"{spec.max_length}). Fix: raise max_length, or remove the item"
        )
    scored = tokenizer.decode([ids[n] for n in positions], skip_special_tokens=True)
    return Item(
        id=row.id,
        cluster=row.cluster,
        prompt="",
        reference=text,
        request=MaskedRequest(ids, positions, int(tokenizer.mask_token_id)),
        slices=row.slices,
        references=(text,),
        scored_bytes=len(str(scored).encode()),
    )


def grade_pseudo_likelihood(item: Item, outcome: Outcome) -> Graded:
    """Compute nats per token of the pseudo-log-likelihood, and bits per byte.

    The pseudo-log-likelihood is the sum over the tokens of log P(token | all other tokens); the
    exponential of the mean nats per token is the pseudo-perplexity (Salazar et al. 2020,
    arXiv:1910.14659, equations 1 and 3). Bytes are those of the scored text.
    """
    (total,) = outcome.log_likelihoods
    measures = {"nats": -total}
    if item.scored_bytes:
        measures["bits_per_byte"] = -total / math.log(2) / item.scored_bytes
    return Graded(-total / len(_request(item).positions), "", measures)
