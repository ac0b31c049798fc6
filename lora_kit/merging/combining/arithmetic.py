"""Combine the updates of one module: functions of matrices, without files or models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LoraFactors:
    """Low-rank update `b @ a`, with the scaling folded into `b`.

    Attributes:
        a: (rank, in) float32.
        b: (out, rank) float32.
    """

    a: torch.Tensor
    b: torch.Tensor

    @property
    def rank(self) -> int:
        """Number of columns of `b`."""
        return self.b.shape[1]

    @property
    def energy(self) -> float:
        """Squared Frobenius norm of `b @ a`: the trace of `(b.T b)(a a.T)`."""
        a, b = self.a.double(), self.b.double()
        return float(((b.T @ b) * (a @ a.T)).sum())


@dataclass(frozen=True)
class TruncatedUpdate:
    """Best approximation of an update at a given rank.

    Attributes:
        factors: factors of the approximation. The singular values are split evenly between them,
            so that further training has gradients of like size for both.
        energy: squared Frobenius norm of the full update.
        kept: squared Frobenius norm of the approximation.
    """

    factors: LoraFactors
    energy: float
    kept: float


def concatenate_factors(parts: Sequence[LoraFactors], weights: Sequence[float]) -> LoraFactors:
    """Return the exact weighted sum: `[w1 b1 | w2 b2] @ [a1 ; a2] = w1 b1 a1 + w2 b2 a2`.

    Adding the factors instead, as PEFT's `linear` does, leaves cross terms:
    `(b1 + b2)(a1 + a2) = b1 a1 + b2 a2 + b1 a2 + b2 a1`.

    Returns:
        Factors whose rank is the sum of the ranks.
    """
    scaled = [weight * part.b for part, weight in zip(parts, weights, strict=True)]
    return LoraFactors(a=torch.cat([part.a for part in parts]), b=torch.cat(scaled, dim=1))


def truncate_factors(factors: LoraFactors, rank: int) -> TruncatedUpdate:
    """Compute the best rank-`rank` approximation (Eckart and Young 1936) without the dense update.

    With `b = Qb Rb` and `a.T = Qa Ra`, the singular values of `b @ a` are those of `Rb @ Ra.T`,
    which is square, with at most as many rows as the factors' rank.
    """
    qb, rb = torch.linalg.qr(factors.b.double())
    qa, ra = torch.linalg.qr(factors.a.T.double())
    left, values, right = torch.linalg.svd(rb @ ra.T, full_matrices=False)
    kept = values[:rank]
    root = kept.sqrt()
    return TruncatedUpdate(
        factors=LoraFactors(
            a=(root[:, None] * (right[:rank] @ qa.T)).float(),
            b=((qb @ left[:, :rank]) * root).float(),
        ),
        energy=float(values.square().sum()),
        kept=float(kept.square().sum()),
    )


def truncate_dense(update: torch.Tensor, rank: int) -> TruncatedUpdate:
    """Compute the best rank-`rank` approximation of a dense update.

    Uses the eigenvectors of the smaller Gram matrix in float64: a full SVD costs several times as
    much, and only its first few directions are needed.

    Args:
        update: (out, in) float32.
        rank: rank of the approximation, at least 1.
    """
    if update.shape[0] > update.shape[1]:
        transposed = truncate_dense(update.T, rank)
        factors = LoraFactors(a=transposed.factors.b.T, b=transposed.factors.a.T)
        return TruncatedUpdate(factors, transposed.energy, transposed.kept)
    wide = update.double()
    squares, vectors = torch.linalg.eigh(wide @ wide.T)
    # Ascending; an eigenvalue of zero comes out as a tiny number of either sign.
    kept = squares.flip(0)[:rank].clamp(min=0)
    basis = vectors.flip(1)[:, :rank]
    root = kept.sqrt().sqrt()
    inverse = torch.where(root > 0, 1 / root, 0)
    return TruncatedUpdate(
        factors=LoraFactors(
            a=(inverse[:, None] * (basis.T @ wide)).float(), b=(basis * root).float()
        ),
        energy=float(wide.square().sum()),
        kept=float(kept.sum()),
    )


def ties_merge(
    updates: Sequence[torch.Tensor], weights: Sequence[float], density: float, total: float
) -> torch.Tensor:
    """Trim, elect signs and average (TIES: Yadav et al. 2023, arXiv:2306.01708, section 4).

    The paper trims over all parameters of a model at once. Here, as in PEFT, each module keeps its
    own largest values, so that no module is emptied by larger values in another one.

    Args:
        updates: (out, in) float32 each.
        weights: one weight per update.
        density: share of the values that are kept.
        total: sum of the absolute weights, see `elect_and_average`.

    Returns:
        (out, in) float32.
    """
    from peft.utils.merge_utils import magnitude_based_pruning

    trimmed = [magnitude_based_pruning(update, density) for update in updates]
    return elect_and_average(trimmed, weights, total)


def elect_and_average(
    updates: Sequence[torch.Tensor], weights: Sequence[float], total: float
) -> torch.Tensor:
    """Return the weighted mean of the values with the elected sign, times `total`.

    Args:
        updates: (out, in) float32 each; zeros neither vote nor count in the mean.
        weights: one weight per update; a negative weight flips the sign of its update.
        total: sum of the absolute weights of all adapters, those that do not change this module
            included: the paper's lambda. 1 gives the mean; weights of 1 each give the sum where
            all signs agree, as `linear` does.

    Returns:
        (out, in) float32.
    """
    from peft.utils.merge_utils import calculate_majority_sign_mask

    sizes = torch.tensor([abs(weight) for weight in weights])[:, None, None]
    weighted = torch.stack([w * update for w, update in zip(weights, updates, strict=True)])
    # PEFT's `ties` elects before it weighs, so that an adapter of weight 0.01 has a full vote, and
    # divides the weighted sum by the number of agreeing values, so that weights that sum to 1
    # shrink the result a second time. Only its sign mask is used.
    agreeing = calculate_majority_sign_mask(weighted)
    mass = (sizes * agreeing).sum(dim=0)
    mean: torch.Tensor = (weighted * agreeing).sum(dim=0) / torch.where(mass > 0, mass, 1)
    return total * mean


def drop_and_rescale(
    update: torch.Tensor, density: float, generator: torch.Generator
) -> torch.Tensor:
    """Drop random values and rescale the rest (DARE: Yu et al. 2024, arXiv:2311.03099, eq. 1).

    PEFT's `random_pruning` draws from the global generator, which would make the values of a
    module depend on the modules before it.

    Args:
        update: (out, in) float32.
        density: probability that a value is kept.
        generator: source of the random numbers.

    Returns:
        (out, in) float32.
    """
    keep = torch.rand(update.shape, generator=generator) < density
    return torch.where(keep, update / density, 0)
