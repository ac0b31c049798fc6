"""An export in words."""

from __future__ import annotations

from pathlib import Path

from lora_kit.merging.exporting.export import Exported
from lora_kit.runtime.errors import MergeError


def read_texts(path: Path) -> tuple[str, ...]:
    """The lines of a file that are not empty.

    Raises:
        MergeError: if it cannot be read or has none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MergeError(f"--texts {path}: cannot be read: {error}") from error
    texts = tuple(line for line in lines if line.strip())
    if not texts:
        raise MergeError(f"--texts {path}: has no lines")
    return texts


def described(result: Exported) -> str:
    """How far the export is from its model, and that it is not what was evaluated."""
    figures, limits = result.comparison, result.limits
    tokens = (
        f", {figures.same_tokens} of {figures.texts} texts cut into the same tokens"
        if figures.texts
        else ""
    )
    lines = [
        f"{result.path}: {result.type}, {result.weight_bytes / 1e6:.1f} MB; read back, the same "
        f"most likely token at {figures.top1_agreement:.1%} of {figures.positions} positions, KL "
        f"{figures.mean_kl:.1e} nats (99th percentile {figures.p99_kl:.1e}){tokens}"
    ]
    if not result.passed:
        lines.append(
            f"It is NOT the model that it was made from: at least {limits.least_agreement:.1%} and "
            f"at most {limits.most_mean_kl:.0e} nats are wanted, and the same tokens"
        )
    lines.append(
        "What was evaluated is the model that this was made from; this is another one until it is "
        "evaluated itself"
    )
    return "\n".join(lines)
