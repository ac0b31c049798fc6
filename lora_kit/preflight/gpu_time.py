"""Time of a training on GPUs that are not here, from their peaks and an assumed share of them."""

from __future__ import annotations

from collections.abc import Iterable

# Dense products in bfloat16, TFLOP/s, as published by the makers.
PEAKS = {
    "A10G 24 GB": 70,
    "L4 24 GB": 121,
    "L40S 48 GB": 362,
    "A100 40 GB": 312,
    "A100 80 GB": 312,
    "H100 80 GB": 989,
    "H200 141 GB": 989,
    "B200 192 GB": 2250,
    "MI300X 192 GB": 1307,
}
# Share of the peak that LoRA reaches on packed rows: 12,500 token/s of an 8B were published for an
# H100, which is 41%. No GPU has run this project yet.
UTILISATION = 0.4
# FLOP per token and weight: forward, and backward to the inputs alone, since the weights are
# frozen; gradient checkpointing adds another forward pass.
FLOP, FLOP_RECOMPUTED = 4, 6


def training_seconds(
    gpus: Iterable[str], tokens: float, parameters: int, processes: int, is_recomputed: bool
) -> dict[str, float]:
    """Return the assumed seconds of a training by the name of the GPU.

    Attention, padding and communication are not counted, so that long rows take longer.

    Args:
        gpus: names of GPUs, one for each process; those without a known peak are left out.
        tokens: tokens of all epochs.
        parameters: weights of the backbone.
        processes: number of processes, which share the tokens.
        is_recomputed: true with gradient checkpointing.
    """
    flop = (FLOP_RECOMPUTED if is_recomputed else FLOP) * parameters * tokens
    return {
        name: flop / (PEAKS[name] * 1e12 * UTILISATION * processes)
        for name in gpus
        if name in PEAKS
    }
