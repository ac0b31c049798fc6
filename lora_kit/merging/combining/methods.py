"""Names of the combination methods."""

from typing import Literal

CombinationMethod = Literal["linear", "svd", "ties", "dare_linear", "dare_ties"]
"""Method of `lora-kit combine`."""
