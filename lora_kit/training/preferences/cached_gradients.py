"""Cached gradients: a loss of all vectors of a step, in forward passes of some texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

Texts = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Processes:
    """Processes that share the texts of a step; one process alone by default.

    Attributes:
        index: number of this process.
        count: number of processes, over which gradients are averaged in a backward pass.
        gather: function from (rows, size) of this process to (count * rows, size) of all of them,
            in their order.
        no_sync: context of a backward pass in which no gradients are exchanged.
    """

    index: int = 0
    count: int = 1
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda vectors: vectors
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext


ALONE = Processes()


def backward_in_passes(
    texts: Texts,
    texts_per_pass: int,
    embed: Callable[[Texts], torch.Tensor],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    backward: Callable[[torch.Tensor], None],
    device: torch.device,
    processes: Processes = ALONE,
) -> torch.Tensor:
    """Compute the gradient of a loss that depends on all vectors, a few texts at a time.

    Each process computes the vectors of its share of the texts and gathers the others, and the
    gradient of the loss with respect to its own is taken. With several passes, the vectors are
    computed without a graph, and each pass is repeated with one, which this gradient enters (Gao et
    al. 2021, arXiv:2101.06983, section 3.2). The result is that of one pass over all texts by one
    process, but for the numbers that dropout draws; they are the same in both passes over a text.

    Args:
        texts: token ids of all texts of the step, the same on all processes.
        texts_per_pass: texts of a forward pass, which are of similar lengths.
        embed: function from texts to their vectors, (texts, hidden size) float32.
        loss_of: function from all vectors in the order of `texts` to the loss; scalar.
        backward: function that backpropagates a scalar.
        device: device of the model.
        processes: processes that share the texts.

    Returns:
        The loss, without a graph; scalar.
    """
    order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
    # A process without a text takes part with the last one, which does not count for it.
    share = order[processes.index :: processes.count] or order[-1:]
    # By the largest share: in a pass with a graph, data parallelism may exchange what all processes
    # have to exchange at the same point.
    is_cached = -(-len(order) // processes.count) > texts_per_pass
    starts = range(0, len(share), texts_per_pass)
    passes = [[texts[number] for number in share[n : n + texts_per_pass]] for n in starts]
    # From the state that checkpoints hold, so that a resumed training draws the same numbers.
    seeds = torch.randint(2**31, (len(passes),)).tolist()
    computed = []
    with torch.set_grad_enabled(not is_cached):
        for seed, one in zip(seeds, passes, strict=True):
            with _drawing(seed, device):
                computed.append(embed(one))
    loss, gradients = _gradients(torch.cat(computed).detach(), order, loss_of, processes)
    for number, (seed, one, start) in enumerate(zip(seeds, passes, starts, strict=True), start=1):
        is_last = number == len(passes)
        with nullcontext() if is_last else processes.no_sync():
            if is_cached:
                with _drawing(seed, device):
                    computed = [embed(one)]
            backward((computed[0] * gradients[start : start + len(one)]).sum())
    return loss


def _gradients(
    own: torch.Tensor,
    order: Sequence[int],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    processes: Processes,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss, and the gradients of this process's vectors, times the processes.

    Args:
        own: vectors of this process, (share, hidden size), without a graph.
        order: numbers of all texts; each process has one after the other in turn.
        loss_of: function from all vectors in the order of the texts to the loss.
        processes: processes that share the texts.
    """
    index, count = processes.index, processes.count
    rows = -(-len(order) // count)
    padded = torch.nn.functional.pad(own, (0, 0, 0, rows - len(own)))
    # Text `order[n]` is row `n // count` of process `n % count`.
    places = torch.empty(len(order), dtype=torch.int64)
    numbers = torch.arange(len(order))
    places[torch.tensor(order)] = numbers % count * rows + numbers // count
    every = processes.gather(padded).requires_grad_()
    loss = loss_of(every[places.to(every.device)])
    (gradients,) = torch.autograd.grad(loss, every)
    return loss.detach(), count * gradients[index * rows : index * rows + len(own)]


@contextmanager
def _drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Let dropout draw the numbers of a seed, and restore the random state on exit."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
