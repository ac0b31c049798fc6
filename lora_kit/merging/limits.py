"""How far a merged model may be from base + adapter: what rounding does, and a wrong merge not.

Measured on SmolLM2-135M with an adapter of four steps, whose changes are small
(`python -m tests.benchmarks.merging --rounding`). Stored in bfloat16 and computed in float32, 99.0%
of the most likely tokens are the same, the distance is 0.03% of the base's, and the module that
loses most keeps 71% of its change. A merge with alpha halved keeps 50% of every module's, one that
did nothing has 0% and all of the distance. Computed in bfloat16, two models of the same weights
that add them up in another order are 2e-3 nats a token apart, and 97.3% of their tokens are the
same: there only the modules, which are tried in float32, tell a small change from none. Weights
that lie on bfloat16's grid already, and are stored in it again, round the same change away: half of
the modules keep less than 42% of it, which is told, and `merge.dtype: float32` keeps all.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_SHARE_OF_CONTROL = 0.05
# Of the module in the middle, which rounding hardly touches and a wrong scaling does.
KEPT_BY_HALF = (0.9, 1.1)
# Of each module's change, by the dtype that is stored; layers of 8 bits round their inputs as well.
KEPT = {
    "float32": (0.99, 1.01),
    "float16": (0.9, 1.1),
    "bfloat16": (0.5, 1.5),
    "int8": (0.9, 1.1),
}
# By the dtype that is computed in: share of the most likely tokens that are the same at least, and
# nats a token that rounding makes whatever the adapter does. Those of float16 are not measured: it
# has three bits more than bfloat16, so an error of a 64th in nats.
COMPUTED = {"float32": (0.97, 1e-6), "float16": (0.97, 1e-4), "bfloat16": (0.93, 5e-3)}


@dataclass(frozen=True)
class Limits:
    """What is allowed.

    Attributes:
        agreement: share of positions whose most likely token is the same, at least.
        rounding_kl: nats a token that are allowed however little the adapter does.
        kept: share of each module's change, at least and at most.
    """

    agreement: float
    rounding_kl: float
    kept: tuple[float, float]

    def most_kl(self, control: float) -> float:
        """Mean distance that is allowed, nats a token.

        Args:
            control: the base's distance from base + adapter.
        """
        return max(MOST_SHARE_OF_CONTROL * control, self.rounding_kl)


def limits_for(stored: str, computed: str = "float32", quantization: str = "none") -> Limits:
    """The limits of one comparison.

    Args:
        stored: dtype of the merged files.
        computed: dtype that both models computed in.
        quantization: of the backbone that the merged model is compared with.

    Raises:
        KeyError: if a dtype is none of these.
    """
    of = [KEPT[stored], *([KEPT["int8"]] if quantization == "int8" else [])]
    kept = min(low for low, _ in of), max(high for _, high in of)
    return Limits(*COMPUTED[computed], kept)
