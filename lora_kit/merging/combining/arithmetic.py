"""How the updates of one module become one: functions of matrices, without files or models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Factors:
    """A low-rank update `b @ a`, its scaling already in `b`.

    Attributes:
        a: (rank, in) float32.
        b: (out, rank) float32.
    """

    a: torch.Tensor
    b: torch.Tensor

    @property
    def rank(self) -> int:
        """Columns of `b`."""
        return self.b.shape[1]

    @property
    def energy(self) -> float:
        """Squared Frobenius norm of `b @ a`: the trace of `(b.T b)(a a.T)`."""
        a, b = self.a.double(), self.b.double()
        return float(((b.T @ b) * (a @ a.T)).sum())


@dataclass(frozen=True)
class Cut:
    """The best approximation of an update at a rank.

    Attributes:
        factors: of the approximation, each with half of the singular values, so that a training
            that goes on from them has gradients of like size for both.
        energy: squared Frobenius norm of the whole update.
        kept: squared Frobenius norm of the approximation.
    """

    factors: Factors
    energy: float
    kept: float


def concatenated(parts: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """The weighted sum of updates, exactly: `[w1 b1 | w2 b2] @ [a1 ; a2] = w1 b1 a1 + w2 b2 a2`.

    Adding the factors instead, as PEFT's `linear` does, leaves cross terms:
    `(b1 + b2)(a1 + a2) = b1 a1 + b2 a2 + b1 a2 + b2 a1`.

    Returns:
        Factors whose rank is the sum of the ranks.
    """
    scaled = [weight * part.b for part, weight in zip(parts, weights, strict=True)]
    return Factors(a=torch.cat([part.a for part in parts]), b=torch.cat(scaled, dim=1))


def cut_factors(factors: Factors, rank: int) -> Cut:
    """The best rank-`rank` approximation (Eckart and Young 1936) without the dense update.

    With `b = Qb Rb` and `a.T = Qa Ra`, the singular values of `b @ a` are those of `Rb @ Ra.T`, a
    square of at most the factors' rank.
    """
    qb, rb = torch.linalg.qr(factors.b.double())
    qa, ra = torch.linalg.qr(factors.a.T.double())
    left, values, right = torch.linalg.svd(rb @ ra.T, full_matrices=False)
    kept = values[:rank]
    root = kept.sqrt()
    return Cut(
        factors=Factors(
            a=(root[:, None] * (right[:rank] @ qa.T)).float(),
            b=((qb @ left[:, :rank]) * root).float(),
        ),
        energy=float(values.square().sum()),
        kept=float(kept.square().sum()),
    )


def cut_dense(update: torch.Tensor, rank: int) -> Cut:
    """The best rank-`rank` approximation of a dense update.

    By the eigenvectors of its smaller Gram matrix in float64: of a whole SVD only the first few
    directions would be used, at several times the cost.

    Args:
        update: (out, in) float32.
        rank: at least one.
    """
    if update.shape[0] > update.shape[1]:
        turned = cut_dense(update.T, rank)
        flipped = Factors(a=turned.factors.b.T, b=turned.factors.a.T)
        return Cut(flipped, turned.energy, turned.kept)
    wide = update.double()
    squares, vectors = torch.linalg.eigh(wide @ wide.T)
    # Ascending; a zero comes out as a tiny number of either sign.
    kept = squares.flip(0)[:rank].clamp(min=0)
    basis = vectors.flip(1)[:, :rank]
    root = kept.sqrt().sqrt()
    inverse = torch.where(root > 0, 1 / root, 0)
    return Cut(
        factors=Factors(a=(inverse[:, None] * (basis.T @ wide)).float(), b=(basis * root).float()),
        energy=float(wide.square().sum()),
        kept=float(kept.sum()),
    )


def ties(
    updates: Sequence[torch.Tensor], weights: Sequence[float], density: float, total: float
) -> torch.Tensor:
    """Trim, elect signs, and average what agrees (Yadav et al. 2023, arXiv:2306.01708, section 4).

    The paper trims over all parameters of a model at once; here as in PEFT each module keeps its
    own largest values, so that no module is emptied by larger ones elsewhere.

    Args:
        updates: (out, in) float32 each.
        weights: one each.
        density: share of the values that are kept.
        total: see `elected`.
    """
    from peft.utils.merge_utils import magnitude_based_pruning

    trimmed = [magnitude_based_pruning(update, density) for update in updates]
    return elected(trimmed, weights, total)


def elected(
    updates: Sequence[torch.Tensor], weights: Sequence[float], total: float
) -> torch.Tensor:
    """The weighted mean of the values that have the elected sign, times `total`.

    Args:
        updates: (out, in) float32 each; zeros have no vote and are no part of the mean.
        weights: one each; a negative one turns its update round.
        total: sum of the absolute weights of all adapters, also of those that leave this module
            alone: the paper's lambda. 1 gives the mean; weights of 1 each give, where all agree,
            the sum, as `linear` does.

    Returns:
        (out, in) float32.
    """
    from peft.utils.merge_utils import calculate_majority_sign_mask

    sizes = torch.tensor([abs(weight) for weight in weights])[:, None, None]
    weighted = torch.stack([w * update for w, update in zip(weights, updates, strict=True)])
    # PEFT's `ties` elects before it weighs, so that an adapter of weight 0.01 has a whole vote, and
    # divides the weighted sum by the number of those that agree, so that weights that sum to one
    # shrink the result by their number a second time. Its mask is right.
    agreeing = calculate_majority_sign_mask(weighted)
    mass = (sizes * agreeing).sum(dim=0)
    mean: torch.Tensor = (weighted * agreeing).sum(dim=0) / torch.where(mass > 0, mass, 1)
    return total * mean


def dropped(update: torch.Tensor, density: float, generator: torch.Generator) -> torch.Tensor:
    """Drop values at random and rescale the others (DARE, Yu et al. 2024, arXiv:2311.03099, eq. 1).

    PEFT's `random_pruning` draws from the global generator, so that a module's values would depend
    on the modules before it.
    """
    keep = torch.rand(update.shape, generator=generator) < density
    return torch.where(keep, update / density, 0)
