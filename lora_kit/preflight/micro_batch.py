"""The largest forward pass of a training: what decides how much memory it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lora_kit.data.dataset import PreparedData
from lora_kit.training.micro_batcher import MicroBatcher


@dataclass(frozen=True)
class MicroBatch:
    """The shape of one forward pass.

    Attributes:
        rows: of the batch.
        length: tokens a row, padding included.
        supervised: tokens that the loss is taken on, in all rows.
        masked: whether attention needs a mask of its own: some rows are padded, or several examples
            share one.
    """

    rows: int
    length: int
    supervised: int
    masked: bool

    def resized(self, rows: int, length: int) -> MicroBatch:
        """The same kind of batch with fewer rows or tokens."""
        share = rows * length / (self.rows * self.length)
        return replace(
            self,
            rows=rows,
            length=length,
            supervised=max(math.ceil(self.supervised * share), 1),
            # A row of its own needs no mask; a pack is one row as it is.
            masked=self.masked and (rows > 1 or self.rows == 1),
        )


def largest_micro_batch(data: PreparedData, cutting: MicroBatcher) -> MicroBatch:
    """The largest forward pass that a training may make: its longest examples side by side.

    Args:
        data: at least one example, of which only the lengths are read.
        cutting: of a step into forward passes.
    """
    lengths = data.lengths
    order = np.argsort(-lengths, kind="stable")
    taken = (
        _packed(lengths, order, cutting)
        if cutting.packing
        else _side_by_side(lengths, order, cutting)
    )
    chosen = lengths[taken]
    supervised = data.table.column("supervised").to_numpy()[taken]
    return MicroBatch(
        rows=1 if cutting.packing else len(taken),
        length=int(chosen.sum() if cutting.packing else chosen.max()),
        supervised=int(supervised.sum()),
        masked=len(taken) > 1 if cutting.packing else len(set(chosen.tolist())) > 1,
    )


def _side_by_side(
    lengths: NDArray[np.int32], order: NDArray[np.int64], cutting: MicroBatcher
) -> NDArray[np.int64]:
    longest = int(lengths[order[0]])
    fitting = max(cutting.tokens // longest, 1) if cutting.tokens else cutting.rows
    return order[: min(cutting.rows, fitting)]


def _packed(
    lengths: NDArray[np.int32], order: NDArray[np.int64], cutting: MicroBatcher
) -> NDArray[np.int64]:
    """The longest that find room in one pack."""
    taken: list[int] = []
    room, shortest = cutting.tokens or math.inf, int(lengths[order[-1]])
    for place in order.tolist():
        if not taken or lengths[place] <= room:
            taken.append(place)
            room -= int(lengths[place])
        if len(taken) == cutting.rows or room < shortest:
            break
    return np.array(taken)
