"""Selective token masking: tokens that are improbable under the base are not learned."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from accelerate.utils import gather_object
from numpy.typing import NDArray

from lora_kit.backbone.load import Backbone
from lora_kit.data.prepared import Counts, PreparedData, SourceCounts
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.data.tokenization import end_of_turn_id
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.recipe.retention import TokenMaskingSpec
from lora_kit.runtime.console import meter
from lora_kit.runtime.errors import DataError, TrainingError
from lora_kit.runtime.processes import process_state
from lora_kit.training.losses import nll_per_example

if TYPE_CHECKING:
    from peft import PeftModel

# Number of examples sorted by length at a time.
SORT_WINDOW = 256


def mask_improbable_tokens(
    data: PreparedData,
    model: PeftModel,
    backbone: Backbone,
    spec: TokenMaskingSpec,
    max_tokens_per_batch: int,
) -> PreparedData:
    """Remove the labels of tokens that are improbable under the base.

    Wu et al. 2025, arXiv:2501.14315: tokens of high perplexity move the weights far from the
    base's; without them, learning a task causes less forgetting. The end of a turn is always
    learned, however improbable: a model that does not learn to stop has not learned the task.

    Args:
        data: training examples.
        model: the model with its adapter, which is disabled here.
        backbone: the frozen model.
        spec: largest perplexity of a token that keeps its label.
        max_tokens_per_batch: largest number of tokens per forward pass, padding included.

    Returns:
        Examples that have labels left, with the digest of `data`, since rows and backbone determine
        them.

    Raises:
        TrainingError: if no label is left, or a forward pass does not fit into memory.
    """
    limit, end = math.log(spec.max_perplexity), _end_token(backbone)
    state, starts = process_state(), range(0, len(data.examples), SORT_WINDOW)
    # The windows are shared between the processes: each is scored by one of them.
    own = starts[state.process_index :: state.num_processes]
    found: dict[int, list[list[int]]] = {}
    with (
        meter("masking improbable tokens", len(own), visible=state.is_main_process) as progress,
        adapter_disabled(model),
    ):
        for start in own:
            window = data.examples[start : start + SORT_WINDOW]
            found[start] = _masked_labels(window, model, backbone, limit, end, max_tokens_per_batch)
            progress.advance()
    gathered = {start: rows for part in gather_object([found]) for start, rows in part.items()}
    labels = [row for start in starts for row in gathered[start]]
    supervised = np.array(
        [sum(one != IGNORE_INDEX for one in row) for row in labels], dtype=np.int32
    )
    ends = np.array([sum(one == end for one in row) for row in labels], dtype=np.int32)
    learned = supervised > ends
    if not learned.any():
        raise TrainingError(
            "retention.token_masking.max_perplexity: no supervised token is that probable under "
            f"the base, so nothing would be learned (got {spec.max_perplexity}). Fix: raise it"
        )
    return _with_labels(data, labels, supervised, learned)


def _with_labels(
    data: PreparedData,
    labels: list[list[int]],
    supervised: NDArray[np.int32],
    learned: NDArray[np.bool_],
) -> PreparedData:
    """Return the data with new labels, without the examples that are not `learned`.

    Args:
        data: training examples.
        labels: new labels of each example.
        supervised: number of supervised tokens of each example, (examples,) int32.
        learned: true for examples to keep, (examples,) bool.
    """
    table = data.table
    for name, column in (
        ("labels", pa.array(labels, pa.list_(pa.int32()))),
        ("supervised", pa.array(supervised)),
    ):
        table = table.set_column(table.schema.get_field_index(name), name, column)
    table = table.filter(pa.array(learned))
    numbers = pa.array(np.arange(table.num_rows))
    table = table.set_column(table.schema.get_field_index("row"), "row", numbers)
    return dataclasses.replace(data, table=table, counts=_recounted(data.counts, table), path=None)


def _recounted(counts: Counts, table: pa.Table) -> Counts:
    """Return the counts after some of the used examples were dropped."""
    length, truncated, supervised, source = (
        np.asarray(table.column(name).to_numpy())
        for name in ("length", "truncated", "supervised", "source")
    )

    def numbers(before: Counts | SourceCounts, kept: NDArray[np.bool_]) -> dict[str, Any]:
        used = int(kept.sum())
        return {
            "used": used,
            "dropped": before.dropped + before.used - used,
            "truncated": int(truncated[kept].sum()),
            "tokens": int(length[kept].sum()),
        }

    return dataclasses.replace(
        counts,
        **numbers(counts, np.full(len(source), True)),
        supervised_tokens=int(supervised.sum()),
        sources={
            name: dataclasses.replace(one, **numbers(one, source == index))
            for index, (name, one) in enumerate(counts.sources.items())
        },
    )


def _end_token(backbone: Backbone) -> int | None:
    """Return the token that ends a turn; `None` if the chat template has none."""
    try:
        return end_of_turn_id(backbone.tokenizer)
    except DataError:
        return None


def _masked_labels(
    window: Sequence[Example],
    model: PeftModel,
    backbone: Backbone,
    limit: float,
    end: int | None,
    max_tokens: int,
) -> list[list[int]]:
    """Return the labels of examples, in order, with those of improbable tokens masked."""
    masked = []
    losses = nll_per_example(model, backbone, window, max_tokens, "the training rows")
    for example, nll in zip(window, losses, strict=True):
        labels = list(example.labels)
        scored = [n for n, label in enumerate(labels) if n and label != IGNORE_INDEX]
        for position, is_masked in zip(scored, (nll > limit).tolist(), strict=True):
            if is_masked and labels[position] != end:
                labels[position] = IGNORE_INDEX
        masked.append(labels)
    return masked
