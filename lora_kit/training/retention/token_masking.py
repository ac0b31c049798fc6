"""Selective token masking: what the base finds improbable is not learned."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lora_kit.backbone.load import Backbone
from lora_kit.data.prepared import PreparedData
from lora_kit.data.tokenization import IGNORED, Example, end_of_turn
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.recipe.retention import TokenMaskingSpec
from lora_kit.runtime.console import meter
from lora_kit.runtime.errors import DataError, TrainingError
from lora_kit.runtime.processes import process_state
from lora_kit.training.losses import nll_of_each

if TYPE_CHECKING:
    from peft import PeftModel

# Examples that are sorted by length together.
WINDOW = 256


def without_improbable(
    data: PreparedData,
    model: PeftModel,
    backbone: Backbone,
    spec: TokenMaskingSpec,
    max_tokens_per_batch: int,
) -> PreparedData:
    """Take the labels of tokens away that are improbable under the base.

    Wu et al. 2025, arXiv:2501.14315: tokens of high perplexity are what moves the weights far from
    where they were; learned without them, a task costs less of what was known.

    Args:
        data: what is trained on.
        model: with its adapter, which is switched off.
        backbone: of the model.
        spec: from which perplexity on.
        max_tokens_per_batch: most tokens of a forward pass, padding included.

    Returns:
        The examples that have labels left, under the same digest: which ones follows from the rows
        and the backbone. The end of a turn is always learned, probable or not: a model that does
        not learn to stop has not learned the task.

    Raises:
        TrainingError: if no label is left, or a forward pass does not fit into memory.
    """
    limit, end = math.log(spec.max_perplexity), _end(backbone)
    labels: list[list[int]] = []
    is_shown = process_state().is_main_process
    with (
        meter("looking for improbable tokens", len(data.examples), visible=is_shown) as progress,
        adapter_disabled(model),
    ):
        for window in _windows(data.examples):
            labels += _kept(window, model, backbone, limit, end, max_tokens_per_batch)
            progress.advance(len(window))
    supervised = np.array([sum(one != IGNORED for one in row) for row in labels], dtype=np.int32)
    learned = supervised > _ends(labels, end)
    if not learned.any():
        raise TrainingError(
            f"retention.token_masking.max_perplexity: {spec.max_perplexity}: no supervised token is as "
            "probable as that under the base, so that nothing would be learned; raise it"
        )
    table = data.table
    for name, column in (
        ("labels", pa.array(labels, pa.list_(pa.int32()))),
        ("supervised", pa.array(supervised)),
    ):
        table = table.set_column(table.schema.get_field_index(name), name, column)
    table = table.filter(pa.array(learned))
    numbers = pa.array(np.arange(table.num_rows))
    table = table.set_column(table.schema.get_field_index("row"), "row", numbers)
    counts = dataclasses.replace(
        data.counts,
        used=table.num_rows,
        dropped=data.counts.dropped + len(labels) - table.num_rows,
        tokens=int(np.asarray(table.column("length")).sum()),
        supervised_tokens=int(np.asarray(table.column("supervised")).sum()),
    )
    return dataclasses.replace(data, table=table, counts=counts, path=None)


def _end(backbone: Backbone) -> int | None:
    """The token that ends a turn, if the template has one."""
    try:
        return end_of_turn(backbone.tokenizer)
    except DataError:
        return None


def _ends(labels: Sequence[Sequence[int]], end: int | None) -> NDArray[np.int32]:
    """How many labels of each example end a turn, (examples,) int32."""
    return np.array([sum(one == end for one in row) for row in labels], dtype=np.int32)


def _windows(examples: Sequence[Example]) -> Iterator[list[Example]]:
    several = iter(examples)
    while window := list(islice(several, WINDOW)):
        yield window


def _kept(
    window: Sequence[Example],
    model: PeftModel,
    backbone: Backbone,
    limit: float,
    end: int | None,
    most: int,
) -> list[list[int]]:
    """The labels that are left of some examples, in their order."""
    found = []
    losses = nll_of_each(model, backbone, window, most, "the training rows")
    for example, nll in zip(window, losses, strict=True):
        labels = list(example.labels)
        scored = [n for n, label in enumerate(labels) if n and label != IGNORED]
        for place, is_masked in zip(scored, (nll > limit).tolist(), strict=True):
            if is_masked and labels[place] != end:
                labels[place] = IGNORED
        found.append(labels)
    return found
