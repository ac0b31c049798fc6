"""Length-grouped sampling, and splitting of a step's examples into micro-batches."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from lora_kit.backbone.attention import WITH_LENGTHS
from lora_kit.data.supervision import Example
from lora_kit.recipe.data import Packing
from lora_kit.recipe.objective import LANGUAGE_MODELING
from lora_kit.recipe.recipe import Recipe


def resolve_packing(recipe: Recipe, attention: str, device_type: str) -> Packing:
    """Return the recipe's `data.packing`, or its default on a device.

    Args:
        recipe: the recipe.
        attention: `Backbone.packing_attention`.
        device_type: `cpu` or `cuda`.
    """
    if recipe.data.packing is not None:
        return recipe.data.packing
    is_separated = device_type == "cuda" and attention in WITH_LENGTHS
    return "unpadded" if is_separated and allows_packing(recipe) else False


def allows_packing(recipe: Recipe) -> bool:
    """Return true if nothing in a recipe's training needs each example in a row of its own."""
    training = recipe.training
    return (
        training.objective in LANGUAGE_MODELING
        and not recipe.adapter.virtual_tokens
        # Its noise is scaled by the length of a row.
        and training.neftune_noise_alpha is None
        # The attention of the teacher may be another one.
        and training.distillation is None
    )


# Batches sorted together; more of them mean less padding and less randomness.
SORTED_BATCHES = 64


class LengthGroupedSampler(Sampler[int]):
    """Sampler of example indices in which each batch holds examples of about the same length.

    The sampler of the same purpose in transformers sorts within windows of 50 batches and yields
    each window longest first; on a small data set that is the complete epoch in order of length.
    This sampler shuffles windows, ties and batches anew in each epoch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        """Set up the sampler.

        Args:
            lengths: tokens of each example.
            batch_size: examples per batch.
            seed: seed of the order.
        """
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which seeds the order; only the training loop calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        generator.shuffle(order)
        size = self.batch_size * SORTED_BATCHES
        batches = []
        for start in range(0, len(order), size):
            block = sorted(order[start : start + size], key=lambda index: self.lengths[index])
            batches += [
                block[i : i + self.batch_size] for i in range(0, len(block), self.batch_size)
            ]
        # A short batch anywhere but at the end would shift all batches after it.
        short = [batch for batch in batches if len(batch) < self.batch_size]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        generator.shuffle(full)
        for batch in full + short:
            yield from batch


class StepShareSampler(Sampler[list[int]]):
    """Batch sampler that yields one process's share of each optimizer step.

    A step has the same examples for any number of processes, so that a recipe gives the same
    training on all of them and a run can be resumed with another number. Examples are dealt out
    from the longest to the shortest: shares differ by at most one example and hardly in tokens.
    No example is seen twice; in an epoch's last step, which may be short, a share may be empty.

    The sampler sharding of Accelerate would fill up that last step with rows from the start of the
    epoch.
    """

    def __init__(
        self, order: LengthGroupedSampler, batch_size: int, process: int = 0, processes: int = 1
    ):
        """Set up the sampler.

        Args:
            order: sampler that gives the order of the examples.
            batch_size: examples per step, over all processes.
            process: index of this process.
            processes: number of processes that share a step.
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


# A row shorter than this fraction of the longest row in its micro-batch is mostly padding: another
# forward pass costs less. Shares of several processes have such rows, since they are dealt out by
# length.
MIN_LENGTH_RATIO = 0.5


def split_micro_batches(
    examples: Sequence[Example], rows: int, tokens: int | None, packing: bool = False
) -> list[list[Example]]:
    """Split a step's examples into micro-batches, longest first.

    With this order, an out-of-memory error occurs on the first forward pass.

    Args:
        examples: examples of one step.
        rows: maximum examples per micro-batch.
        tokens: maximum tokens per micro-batch, padding included; a longer example gets a
            micro-batch of its own. `None` for no limit.
        packing: if true, a micro-batch is one packed row instead of one row per example.
    """
    ordered = sorted(examples, key=lambda example: -len(example.input_ids))
    return _pack(ordered, rows, tokens) if packing else list(_pad(ordered, rows, tokens))


def _pad(ordered: Sequence[Example], rows: int, tokens: int | None) -> Iterator[list[Example]]:
    group: list[Example] = []
    for example in ordered:
        width = len(group[0].input_ids) if group else 0
        full = len(group) == rows or (tokens and width * (len(group) + 1) > tokens)
        if group and (full or len(example.input_ids) < MIN_LENGTH_RATIO * width):
            yield group
            group = []
        group.append(example)
    yield group


def _pack(ordered: Sequence[Example], rows: int, tokens: int | None) -> list[list[Example]]:
    """Assign each example to the first pack with room (first-fit decreasing)."""
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
