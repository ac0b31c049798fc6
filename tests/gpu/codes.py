"""4- and 8-bit codes of bitsandbytes on the CPU and on the device: the same or not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from tests.gpu.material import Setting, device
from tests.gpu.runner import Case, Figures


def cases(setting: Setting) -> Sequence[Case]:
    """Return one comparison for each kind of codes."""
    side = 256 if setting.is_tiny else 4096
    found = [
        Case(f"{kind}-{str(dtype).removeprefix('torch.')}", partial(four_bits, side, kind, dtype))
        for kind in ("nf4", "fp4")
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
    ]
    return [*found, Case("int8", partial(eight_bits, side))]


def four_bits(side: int, kind: str, dtype: torch.dtype) -> Figures:
    """Compare the codes, the constants and the dequantized weights of one random matrix."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = _random(side).to(dtype)
    packed, state = quantize_4bit(weight, compress_statistics=True, quant_type=kind)
    ours, our_state = quantize_4bit(weight.to(device()), compress_statistics=True, quant_type=kind)
    # What was quantized on the CPU, as it is loaded on a GPU.
    state_there = _moved(state)
    there = dequantize_4bit(packed.to(device()), state_there).cpu()
    here = dequantize_4bit(packed, state)
    return {
        "different_codes": int((packed.view(torch.uint8) != ours.cpu().view(torch.uint8)).sum()),
        "codes": packed.numel(),
        "constants_equal": torch.equal(state.absmax, our_state.absmax.cpu()),
        "dequantized_equal": torch.equal(here, there),
        "largest_difference": float((here.float() - there.float()).abs().max()),
        "own_dequantized_equal": torch.equal(here, dequantize_4bit(ours, our_state).cpu()),
    }


def eight_bits(side: int) -> Figures:
    """Compare the codes and row constants of one random matrix."""
    from bitsandbytes.functional import int8_vectorwise_quant

    weight = _random(side).half()
    here, constants, _ = int8_vectorwise_quant(weight)
    there, constants_there, _ = int8_vectorwise_quant(weight.to(device()))
    return {
        "different_codes": int((here != there.cpu()).sum()),
        "codes": here.numel(),
        "constants_equal": torch.equal(constants, constants_there.cpu()),
    }


def _random(side: int) -> torch.Tensor:
    return torch.randn(side, side, generator=torch.Generator().manual_seed(0)) / side**0.5


def _moved(state: object) -> object:
    import copy

    moved = copy.deepcopy(state)
    moved.to(device())  # type: ignore[attr-defined]
    return moved
