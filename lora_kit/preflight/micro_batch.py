"""Shape of the largest forward pass of a training, which determines its peak memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lora_kit.data.prepared import PreparedData
from lora_kit.training.micro_batcher import MicroBatcher


@dataclass(frozen=True)
class MicroBatch:
    """Shape of one forward pass.

    Attributes:
        rows: number of rows.
        length: tokens per row, padding included.
        supervised: number of supervised tokens in all rows.
        masked: true if attention needs an explicit mask, because some rows are padded or several
            examples are packed into one row.
    """

    rows: int
    length: int
    supervised: int
    masked: bool

    def resized(self, rows: int, length: int) -> MicroBatch:
        """Return the same kind of batch with fewer rows or tokens per row."""
        share = rows * length / (self.rows * self.length)
        return replace(
            self,
            rows=rows,
            length=length,
            supervised=max(math.ceil(self.supervised * share), 1),
            # A single row has no padding and needs no mask, unless it is a pack.
            masked=self.masked and (rows > 1 or self.rows == 1),
        )


def largest_micro_batch(data: PreparedData, batcher: MicroBatcher) -> MicroBatch:
    """Return the largest forward pass that a training may run: its longest examples together.

    Args:
        data: at least one example, of which only the lengths are read.
        batcher: division of an optimizer step into forward passes.
    """
    lengths = data.lengths
    order = np.argsort(-lengths, kind="stable")
    if batcher.packing:
        indices = _longest_pack(lengths, order, batcher)
    else:
        longest = int(lengths[order[0]])
        fitting = max(batcher.tokens // longest, 1) if batcher.tokens else batcher.rows
        indices = order[: min(batcher.rows, fitting)]
    chosen = lengths[indices]
    if batcher.unpadded:
        return _unpadded(data, batcher, indices)
    supervised = data.table.column("supervised").to_numpy()[indices]
    return MicroBatch(
        rows=1 if batcher.packing else len(indices),
        length=int(chosen.sum() if batcher.packing else chosen.max()),
        supervised=int(supervised.sum()),
        masked=len(indices) > 1 if batcher.packing else len(set(chosen.tolist())) > 1,
    )


def _unpadded(data: PreparedData, batcher: MicroBatcher, indices: NDArray[np.int64]) -> MicroBatch:
    """Return a pack that costs as much as rows of its examples, of equal length."""
    chosen = data.lengths[indices]
    mean = math.ceil(int(chosen.sum()) / len(indices))
    return MicroBatch(
        rows=len(indices),
        length=mean if batcher.tokens else int(chosen.max()),
        supervised=int(data.table.column("supervised").to_numpy()[indices].sum()),
        masked=False,
    )


def _longest_pack(
    lengths: NDArray[np.int32], order: NDArray[np.int64], batcher: MicroBatcher
) -> NDArray[np.int64]:
    """Return the indices of the longest examples that fit into one pack."""
    indices: list[int] = []
    room, shortest = batcher.tokens or math.inf, int(lengths[order[-1]])
    for index in order.tolist():
        if not indices or lengths[index] <= room:
            indices.append(index)
            room -= int(lengths[index])
        if len(indices) == batcher.rows or room < shortest:
            break
    return np.array(indices)
