"""Reproduce the weight that a quantized layer multiplied with in training."""

from __future__ import annotations

import torch


def dequantized(weight: torch.Tensor, quantization: str) -> torch.Tensor:
    """Quantize and dequantize a weight as loading it for training does.

    Args:
        weight: (out, in), in the dtype that the backbone computes in.
        quantization: `nf4`, `fp4` or `int8`.

    Returns:
        (out, in) in the same dtype, on the CPU.
    """
    import bitsandbytes.functional as bnb

    from lora_kit.runtime.processes import process_state

    # Same kernels as in training: another device may round ties differently.
    moved = weight.contiguous().to(process_state().device)
    if quantization == "int8":
        codes, scales, _ = bnb.int8_vectorwise_quant(moved.half())
        restored = codes.float() * scales[:, None] / 127
    else:
        codes, state = bnb.quantize_4bit(moved, quant_type=quantization, compress_statistics=True)
        restored = bnb.dequantize_4bit(codes, state)
    result: torch.Tensor = restored.to(weight.dtype).cpu()
    return result
