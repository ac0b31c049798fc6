"""Sequential tests of retention on draws whose true loss is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from lora_kit.statistics.decisions import PairedComparison, non_inferiority
from lora_kit.statistics.looks import Look, Looks

ALPHA = 0.05
SHAPE = -4.0
Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class Rates:
    """Shares of the draws, and the mean share of the clusters that was asked.

    Attributes:
        passed: sequential tests that passed.
        fixed: tests of all items, of the same draws, that passed.
        covered: repeated intervals, of the looks at which the tests ended, that hold the truth.
        asked: mean share of the clusters.
    """

    passed: float
    fixed: float
    covered: float
    asked: float


def flips(rate: float, loss: float) -> Draw:
    """Return draws of right/wrong differences: a share of flips, more of them lost."""

    def draw(generator: np.random.Generator, clusters: int) -> np.ndarray:
        uniform = generator.random(clusters)
        won, lost = (rate - loss) / 2, (rate + loss) / 2
        return (uniform < won).astype(np.float64) - ((uniform >= won) & (uniform < won + lost))

    return draw


def shifted(noise: Draw, loss: float) -> Draw:
    """Return draws of a mean loss, with noise of mean 0 and deviation 1."""
    return lambda generator, clusters: noise(generator, clusters) - loss


def normal(generator: np.random.Generator, clusters: int) -> np.ndarray:
    return generator.normal(0, 1, clusters)


def few_great_losses(generator: np.random.Generator, clusters: int) -> np.ndarray:
    return 1 - generator.exponential(1, clusters)


def heavy_tails(generator: np.random.Generator, clusters: int) -> np.ndarray:
    """Return draws of Student's t with 3 degrees of freedom, at a deviation of 1."""
    return generator.standard_t(3, clusters) / np.sqrt(3)


def clustered(generator: np.random.Generator, items: int) -> np.ndarray:
    """Return draws in clusters of 10 with an intraclass correlation of a half."""
    shared = np.repeat(generator.normal(0, np.sqrt(0.5), items // 10), 10)
    return shared + generator.normal(0, np.sqrt(0.5), items)


# Other scores than right and wrong: draws, and items of a cluster.
NOISES: dict[str, tuple[Draw, int]] = {
    "normal": (normal, 1),
    "few great losses": (few_great_losses, 1),
    "heavy tails": (heavy_tails, 1),
    "clusters of 10": (clustered, 10),
}


def passed_margin(items: int, cluster_size: int) -> float:
    """Return the margin that scores of deviation 1 without a loss pass in four cases of five."""
    return 2.5 * math.sqrt((1 + (cluster_size - 1) * 0.5) / items)


def simulate(
    draw: Draw,
    truth: float,
    margin: float,
    items: int,
    looks: int,
    draws: int,
    binary: bool = False,
    cluster_size: int = 1,
    seed: int = 0,
) -> Rates:
    """Test draws look by look, and all at once.

    Args:
        draw: function that draws differences, those of a cluster together.
        truth: true mean difference of the draws.
        margin: largest loss that is tolerated.
        items: items of a task.
        looks: number of looks that are wished.
        draws: number of draws.
        binary: true for right/wrong scores.
        cluster_size: items of a cluster.
        seed: seed of the draws.
    """
    generator = np.random.default_rng(seed)
    plan = Looks.plan(items // cluster_size, looks, ALPHA, SHAPE, graded=not binary)
    passed = fixed = covered = 0
    asked = 0.0
    test = _Test(margin, binary, cluster_size)
    for _ in range(draws):
        differences = draw(generator, items)
        for number in range(1, len(plan) + 1):
            look = plan.look(number)
            part = differences[: plan.ends[number - 1] * cluster_size]
            comparison, futile = test.at(part, look)
            if comparison.decision != "INCONCLUSIVE" or futile:
                break
        interval = comparison.interval
        passed += comparison.decision == "PASS"
        covered += interval.low <= truth + 1e-12 and interval.high >= truth - 1e-12
        asked += plan.shares[number - 1]
        whole, _ = test.at(differences, Looks.fixed(ALPHA).look(1))
        fixed += whole.decision == "PASS"
    return Rates(passed / draws, fixed / draws, covered / draws, asked / draws)


@dataclass(frozen=True)
class _Test:
    """Test of retention; right/wrong scores with each item its own cluster are tested once."""

    margin: float
    binary: bool
    cluster_size: int

    def at(self, differences: np.ndarray, look: Look) -> tuple[PairedComparison, bool]:
        if self.binary and self.cluster_size == 1:
            won, lost = int((differences > 0).sum()), int((differences < 0).sum())
            return _flips_at(won, lost, len(differences), self.margin, look)
        clusters = [str(n // self.cluster_size) for n in range(len(differences))]
        return _at(differences, clusters, self.margin, look, self.binary)


@cache
def _flips_at(
    won: int, lost: int, items: int, margin: float, look: Look
) -> tuple[PairedComparison, bool]:
    differences = np.zeros(items)
    differences[:won], differences[won : won + lost] = 1, -1
    return _at(differences, [str(n) for n in range(items)], margin, look, True)


def _at(
    differences: np.ndarray, clusters: list[str], margin: float, look: Look, binary: bool
) -> tuple[PairedComparison, bool]:
    comparison = non_inferiority(differences, clusters, look.level, margin, binary)
    return comparison, look.is_futile(comparison.one_sided)
