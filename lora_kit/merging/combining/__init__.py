"""Several adapters of one backbone -> one adapter, from their files alone."""

from typing import Literal

Method = Literal["linear", "svd", "ties", "dare_linear", "dare_ties"]
