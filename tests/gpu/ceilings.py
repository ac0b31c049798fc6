"""Versions, and the rates that nothing on this machine can exceed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from tests.gpu.material import SHAPES, Setting, device
from tests.gpu.runner import Case, Figures

PACKAGES = (
    "torch", "transformers", "accelerate", "peft", "trl", "bitsandbytes", "datasets", "evaluate",
    "gguf", "pydantic", "triton", "flash-attn", "flash-attn-3", "liger-kernel", "deepspeed",
)  # fmt: skip
ROUNDS = 5


def cases(setting: Setting) -> Sequence[Case]:
    """Return the measurements, the quickest first."""
    return [
        Case("versions", versions),
        Case("copy", lambda: copies(setting)),
        Case("matmul", lambda: products(setting)),
        Case("launch", launches),
        Case("attention", lambda: attention(setting)),
    ]


def versions() -> Figures:
    """Return the versions of all that results depend on; `None` for packages that lack."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    lacking = [name for name, version in found.items() if version is None]
    print(f"not installed: {', '.join(lacking) or 'nothing'}", flush=True)
    figures: Figures = {"python": platform.python_version(), "packages": found}
    figures |= {"cores": os.cpu_count(), "device": str(device())}
    if device().type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        figures |= {
            "gpu": properties.name,
            "capability": torch.cuda.get_device_capability(),
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": torch.cuda.nccl.version(),
        }
    return figures


def seconds_of(work: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Return the shortest duration of some rounds, after a warm-up."""
    work()
    durations = []
    for _ in range(rounds):
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        durations.append(time.perf_counter() - started)
    return min(durations)


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def copies(setting: Setting) -> Figures:
    """Return GB/s of copies: within the device (read and written), and from and to the host."""
    count = 1 << (20 if setting.is_tiny else 30)
    one = torch.randn(count, device=device()).bfloat16()
    other = torch.empty_like(one)
    size = one.numel() * one.element_size()
    figures = {"within": 2 * size / seconds_of(lambda: other.copy_(one)) / 1e9}
    if device().type == "cuda":
        part = one[: count // 4]
        for name, pinned in (("pageable", False), ("pinned", True)):
            host = torch.empty(part.shape, dtype=part.dtype, pin_memory=pinned)
            size = part.numel() * part.element_size()
            figures[f"from_host_{name}"] = size / seconds_of(lambda h=host: part.copy_(h)) / 1e9
            figures[f"to_host_{name}"] = size / seconds_of(lambda h=host: h.copy_(part)) / 1e9
    return figures


def products(setting: Setting) -> Figures:
    """Return TFLOP/s of square matrix products of random numbers."""
    side = 256 if setting.is_tiny else 8192
    figures = {}
    for name, dtype, precision in (
        ("bfloat16", torch.bfloat16, "highest"),
        ("float16", torch.float16, "highest"),
        ("tf32", torch.float32, "high"),
        ("float32", torch.float32, "highest"),
    ):
        one = torch.randn(side, side, device=device(), dtype=torch.float32).to(dtype)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            figures[name] = 2 * side**3 / seconds_of(lambda m=one: m @ m) / 1e12
        finally:
            torch.set_float32_matmul_precision(before)
    return figures


def launches() -> Figures:
    """Return microseconds of a kernel that does nearly nothing, queued one after another."""
    number, count = torch.zeros(1, device=device()), 1000

    def add() -> None:
        for _ in range(count):
            number.add_(1)

    return {"microseconds": seconds_of(add, 3) / count * 1e6}


def attention(setting: Setting) -> Figures:
    """Return milliseconds of one layer's attention to a pack, forward and backward.

    Without a mask as one long example, with the mask of the packed examples, and with the lengths
    of the examples where torch has a kernel for them.
    """
    shape = SHAPES[setting.shape]
    heads, length = shape["num_attention_heads"], setting.length
    size = length // setting.examples
    ends = torch.arange(0, length + 1, size, device=device(), dtype=torch.int32)
    example = torch.arange(length, device=device()) // size
    mask = (example[:, None] == example[None]).tril()[None, None]
    width = shape["hidden_size"] // heads
    # As many heads of keys as of queries, for which every version has all kernels.
    queries, keys, values = (
        torch.randn(
            1, heads, length, width, device=device(), dtype=torch.bfloat16, requires_grad=True
        )
        for _ in range(3)
    )

    def dense(**options: Any) -> Callable[[], None]:
        def work() -> None:
            out = scaled_dot_product_attention(queries, keys, values, **options)
            out.float().sum().backward()

        return work

    figures: Figures = {
        "sdpa_causal": 1e3 * seconds_of(dense(is_causal=True), 3),
        "sdpa_mask": 1e3 * seconds_of(dense(attn_mask=mask), 3),
    }
    try:
        figures["varlen"] = 1e3 * _varlen_seconds((queries, keys, values), ends, size)
    except NotImplementedError as error:  # on a CPU
        figures["varlen"] = f"{type(error).__name__}: {error}"[:200]
    return figures


def _varlen_seconds(tensors: Sequence[torch.Tensor], ends: torch.Tensor, longest: int) -> float:
    packed = [one[0].transpose(0, 1).detach().contiguous().requires_grad_() for one in tensors]

    def work() -> None:
        out = varlen_attn(*packed, ends, ends, longest, longest, window_size=(-1, 0))
        out.float().sum().backward()

    return seconds_of(work, 3)
