"""Evidence against exchangeability of a growing sample, valid at every look and without an end.

Full conformal test martingales (Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World,
2005, chapter 7; Vovk 2021, Statistical Science 36:595, arXiv:1906.09256), with windows in place of
single observations. All units so far, those of a reference included, form a bag. They are ordered
by a score that does not depend on their order in time, and the places that the newest window takes
among them are compared with a random choice. Given the bag and all that comes after it, every
choice of places is equally likely, so that the places of different windows are independent,
although all windows share one reference, and although the score is learned anew for each bag.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lora_kit.statistics.clusters import Floats

Places = NDArray[np.int64]

# Shares of a window that may be unusual, and exponents of the Beta(exponent, 1) distribution of
# their relative places; all pairs have the same prior probability.
SHARES, EXPONENTS = (0.1, 0.3, 1.0), (0.2, 0.5)
BLOCK = 20
"""Windows that share a bag. A bag of all windows would make a score learn the newest ones ever more
slowly; each block begins with the reference alone."""


def log_evidence(places: Places, units: int) -> float:
    """Return the log of an e-value against a random choice of places.

    The likelihood ratio of a mixture of alternatives, in which a share of the window tends to the
    first places. Its mean over all choices of as many places is exactly 1.

    Args:
        places: (window,) int64, places of the window's units, from 0 for the most unusual one.
        units: number of units in the bag.

    Returns:
        Nats; 0 for an empty window or a bag of nothing else.
    """
    count = len(places)
    if not 0 < count < units:
        return 0.0
    ratios = np.log(_weights(units))[:, places].sum(axis=1) - _log_normalizers(units, count)
    return float(np.logaddexp.reduce(ratios) - math.log(len(ratios)))


def two_sided_log_evidence(places: Places, units: int) -> float:
    """Return the log of an e-value for windows that tend to either end of the order."""
    ends = log_evidence(places, units), log_evidence(units - 1 - places, units)
    return float(np.logaddexp(*ends)) - math.log(2)


def _weights(units: int) -> Floats:
    """Return the relative probability of each place, (alternatives, units), of mean 1."""
    edges = np.arange(units + 1) / units
    rows = [
        1 - share + share * units * np.diff(edges**exponent)
        for share in SHARES
        for exponent in EXPONENTS
    ]
    return np.array(rows)


@lru_cache(maxsize=4096)
def _log_normalizers(units: int, count: int) -> Floats:
    """Return the log of the mean product of weights over all choices of places, (alternatives,).

    A recursion over the places: a choice of j among the first i has the i-th with probability j/i.
    """
    # In a random order, the products of the first places stay near 1.
    weights = _weights(units)[:, np.random.default_rng(0).permutation(units)]
    sizes = np.arange(count + 1)
    means = np.zeros((len(weights), count + 1))
    means[:, 0] = 1.0
    for place in range(units):
        taken = np.minimum(sizes / (place + 1), 1.0)
        grown = means * (1 - taken)
        grown[:, 1:] += means[:, :-1] * taken[1:] * weights[:, place, None]
        means = grown
    normalizers: Floats = np.log(means[:, count])
    return normalizers


@dataclass
class StreamEvidence:
    """Evidence of a stream of windows for a change at an unknown window.

    A mixture over the window at which the change begins, the k-th with the prior probability
    1/(k (k + 1)), whose sum over all windows is 1. Each block is a martingale that begins with the
    prior probability of its windows. By Ville's inequality it reaches 1/alpha with at most alpha
    times that probability, so that all blocks together do with at most alpha.

    Attributes:
        block: windows of a block.
        windows: windows so far.
    """

    block: int = BLOCK
    windows: int = 0
    _begun: float = field(default=-math.inf, repr=False)

    @property
    def begins_block(self) -> bool:
        """True if the next window is the first one of a block."""
        return self.windows % self.block == 0

    def add(self, log_e: float) -> float:
        """Add the log of a window's e-value; return the log of the evidence so far, in nats."""
        if self.begins_block:
            self._begun = -math.inf
        self.windows += 1
        prior = 1 / (self.windows * (self.windows + 1))
        self._begun = float(np.logaddexp(self._begun, math.log(prior))) + log_e
        last = -(-self.windows // self.block) * self.block
        rest = 1 / (self.windows + 1) - 1 / (last + 1)
        return float(np.logaddexp(self._begun, math.log(rest))) if rest > 0 else self._begun
