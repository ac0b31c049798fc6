"""Cached gradients: a loss of all vectors of a step, in forward passes of some texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

Texts = Sequence[tuple[int, ...]]


def backward_in_passes(
    texts: Texts,
    texts_per_pass: int,
    embed: Callable[[Texts], torch.Tensor],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    backward: Callable[[torch.Tensor], None],
    device: torch.device,
) -> torch.Tensor:
    """Compute the gradient of a loss that depends on all vectors, a few texts at a time.

    The vectors are computed without a graph, and the gradient of the loss with respect to each of
    them is taken. Each pass is then repeated with a graph, which this gradient enters (Gao et al.
    2021, arXiv:2101.06983, section 3.2). The result is that of one pass over all texts. Dropout
    draws the same numbers in both passes over a text.

    Args:
        texts: token ids of all texts.
        texts_per_pass: texts of a forward pass, which are of similar lengths.
        embed: function from texts to their vectors, (texts, hidden size) float32.
        loss_of: function from all vectors in the order of `texts` to the loss; scalar.
        backward: function that backpropagates a scalar.
        device: device of the model.

    Returns:
        The loss, without a graph; scalar.
    """
    order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
    starts = range(0, len(order), texts_per_pass)
    passes = [[texts[number] for number in order[n : n + texts_per_pass]] for n in starts]
    # From the state that checkpoints hold, so that a resumed training draws the same numbers.
    seeds = torch.randint(2**31, (len(passes),)).tolist()
    cached = []
    with torch.no_grad():
        for seed, one in zip(seeds, passes, strict=True):
            with _drawing(seed, device):
                cached.append(embed(one))
    vectors = torch.cat(cached).requires_grad_()
    places = torch.empty(len(order), dtype=torch.int64)
    places[torch.tensor(order)] = torch.arange(len(order))
    loss = loss_of(vectors[places.to(vectors.device)])
    (gradients,) = torch.autograd.grad(loss, vectors)
    for seed, one, start in zip(seeds, passes, starts, strict=True):
        with _drawing(seed, device):
            own = embed(one)
        backward((own * gradients[start : start + len(one)]).sum())
    return loss.detach()


@contextmanager
def _drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Let dropout draw the numbers of a seed, and restore the random state on exit."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
