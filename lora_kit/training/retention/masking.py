"""Selective token masking: what the base finds improbable is not learned."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from lora_kit.adapters import switched_off
from lora_kit.backbone import Backbone
from lora_kit.console import meter
from lora_kit.data.batches import cut
from lora_kit.data.prepared import PreparedData
from lora_kit.data.tokenization import IGNORED, Example
from lora_kit.errors import TrainingError
from lora_kit.likelihood import pad_examples, supervised_nll, to_device
from lora_kit.processes import process_state
from lora_kit.retention_spec import MaskSpec

if TYPE_CHECKING:
    from peft import PeftModel

# Examples that are sorted by length together.
WINDOW = 256


def without_improbable(
    data: PreparedData, model: PeftModel, backbone: Backbone, spec: MaskSpec, batch_tokens: int
) -> PreparedData:
    """Take the labels of tokens away that are improbable under the base.

    Wu et al. 2025, arXiv:2501.14315: tokens of high perplexity are what moves the weights far from
    where they were; learned without them, a task costs less of what was known.

    Args:
        data: what is trained on.
        model: with its adapter, which is switched off.
        backbone: of the model.
        spec: from which perplexity on.
        batch_tokens: most tokens of a forward pass, padding included.

    Returns:
        The same examples with other labels, under the same digest: which labels are left follows
        from the rows and the backbone.

    Raises:
        TrainingError: if no label is left.
    """
    limit = math.log(spec.max_perplexity)
    was_training = model.training
    model.eval()
    labels: list[list[int]] = []
    is_shown = process_state().is_main_process
    with (
        meter("looking for improbable tokens", len(data.examples), visible=is_shown) as progress,
        torch.no_grad(),
        switched_off(model),
    ):
        for window in _windows(data.examples):
            labels += _kept(window, model, backbone, limit, batch_tokens)
            progress.advance(len(window))
    model.train(was_training)
    supervised = np.array([sum(one != IGNORED for one in row) for row in labels], dtype=np.int32)
    total = int(supervised.sum())
    if not total:
        raise TrainingError(
            f"retention.mask.max_perplexity: {spec.max_perplexity}: no supervised token is as "
            "probable as that under the base, so that nothing would be learned; raise it"
        )
    table = data.table
    for name, column in (
        ("labels", pa.array(labels, pa.list_(pa.int32()))),
        ("supervised", pa.array(supervised)),
    ):
        table = table.set_column(table.schema.get_field_index(name), name, column)
    counts = dataclasses.replace(data.counts, supervised_tokens=total)
    return dataclasses.replace(data, table=table, counts=counts, path=None)


def _windows(examples: Sequence[Example]) -> Iterator[list[Example]]:
    several = iter(examples)
    while window := list(islice(several, WINDOW)):
        yield window


def _kept(
    window: Sequence[Example], model: PeftModel, backbone: Backbone, limit: float, most: int
) -> list[list[int]]:
    """The labels that are left of some examples, in their order."""
    places = {id(example): number for number, example in enumerate(window)}
    found = [list(example.labels) for example in window]
    for group in cut(window, len(window), most):
        padded = pad_examples(group, backbone.tokenizer.pad_token_id)
        nll, rows = supervised_nll(model, to_device(padded, backbone.model.device))
        for row, example in enumerate(group):
            labels = found[places[id(example)]]
            scored = [n for n, label in enumerate(labels) if n and label != IGNORED]
            improbable = (nll[rows == row] > limit).tolist()
            for place, is_masked in zip(scored, improbable, strict=True):
                if is_masked:
                    labels[place] = IGNORED
    return found
