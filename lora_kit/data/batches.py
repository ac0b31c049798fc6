"""Which examples go into one batch: those of about the same length, in a random order."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from lora_kit.data.tokenization import Example


class LengthGroupedSampler(Sampler[int]):
    """Indices such that each run of `batch_size` of them is of about one length.

    transformers' sampler of the same purpose sorts within windows of 50 batches and yields each
    window longest first; on a small data set that is the whole epoch in the order of length. Here
    the batches are shuffled, and the ties and the windows with them, anew in each epoch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, window: int = 64):
        """Plan.

        Args:
            lengths: tokens of each example.
            batch_size: examples a batch.
            seed: of the order.
            window: batches that are sorted together; more means less padding, less chance.
        """
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.window = window
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the training at the start of each epoch: nobody else does."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        generator.shuffle(order)
        size = self.batch_size * self.window
        batches = []
        for start in range(0, len(order), size):
            block = sorted(order[start : start + size], key=lambda index: self.lengths[index])
            batches += [
                block[i : i + self.batch_size] for i in range(0, len(block), self.batch_size)
            ]
        # A short batch anywhere but at the end would shift all that follow it.
        short = [batch for batch in batches if len(batch) < self.batch_size]
        whole = [batch for batch in batches if len(batch) == self.batch_size]
        generator.shuffle(whole)
        for batch in whole + short:
            yield from batch


class StepShares(Sampler[list[int]]):
    """Of each optimizer step's examples, those that one process takes.

    A step has the same examples however many processes share it, so that a recipe means the same on
    all of them and a training goes on with another number. They are dealt out from the longest to
    the shortest: the shares differ by one example at most, and hardly in tokens. Nothing is seen
    twice; in an epoch's last step, which may be short, a share may be empty.

    Accelerate's own sharding of a sampler fills that step up with rows from the beginning.
    """

    def __init__(
        self, order: LengthGroupedSampler, batch_size: int, process: int = 0, processes: int = 1
    ):
        """Plan.

        Args:
            order: of the examples.
            batch_size: examples of a step, of all processes together.
            process: index of this one.
            processes: that share a step.
        """
        self.order = order
        self.batch_size = batch_size
        self.process = process
        self.processes = processes

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        lengths = self.order.lengths
        step: list[int] = []
        for number, index in enumerate(self.order, start=1):
            step.append(index)
            if len(step) == self.batch_size or number == len(self.order):
                step.sort(key=lambda one: -lengths[one])
                yield step[self.process :: self.processes]
                step = []


# A row that is shorter than this share of a pass's longest is more padding than text: another pass
# costs less. The shares of several processes are such, dealt out as they are by length.
ALIKE = 0.5


def cut(
    examples: Sequence[Example], rows: int, tokens: int | None, packing: bool = False
) -> list[list[Example]]:
    """Cut a step's examples into forward passes, the longest first: what does not fit, shows.

    Args:
        examples: of one step.
        rows: most examples of a forward pass.
        tokens: most tokens of one, padding included; a longer example has one to itself.
        packing: whether they are one row, or one row each.
    """
    ordered = sorted(examples, key=lambda example: -len(example.input_ids))
    return _packs(ordered, rows, tokens) if packing else list(_rectangles(ordered, rows, tokens))


def _rectangles(
    ordered: Sequence[Example], rows: int, tokens: int | None
) -> Iterator[list[Example]]:
    group: list[Example] = []
    for example in ordered:
        width = len(group[0].input_ids) if group else 0
        full = len(group) == rows or (tokens and width * (len(group) + 1) > tokens)
        if group and (full or len(example.input_ids) < ALIKE * width):
            yield group
            group = []
        group.append(example)
    yield group


def _packs(ordered: Sequence[Example], rows: int, tokens: int | None) -> list[list[Example]]:
    """First fit decreasing: each into the first pack that has room."""
    groups: list[list[Example]] = []
    room: list[float] = []
    for example in ordered:
        size = len(example.input_ids)
        for number, left in enumerate(room):
            if size <= left and len(groups[number]) < rows:
                groups[number].append(example)
                room[number] -= size
                break
        else:
            groups.append([example])
            room.append((tokens or float("inf")) - size)
    return groups
