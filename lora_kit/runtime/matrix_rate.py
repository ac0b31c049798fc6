"""Rates of matrix products on this machine, and the dtype that its CPU multiplies fast."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.errors import LoraKitError
from lora_kit.runtime.files import read_json, write_json
from lora_kit.runtime.hashes import json_sha256
from lora_kit.runtime.locks import one_process_at_a_time
from lora_kit.runtime.machine import machine

# Rows and columns of the multiplied matrices. The side is doubled until a product takes
# MIN_SECONDS, because bfloat16 is a hundred times as slow on a CPU without instructions for it.
FIRST_SIDE, LARGEST_SIDE = 128, 8192
MIN_SECONDS = 0.02
ROUNDS = 3
# Rows and columns of the products that choose a dtype: 7 ms in float32 on two cores.
CHOICE_SIDE = 1024
# Rate relative to float32 from which bfloat16 is chosen: at equal rates it is the faster one, as
# half as many bytes are read. At 0.52, training took 1.27 times as long and a pass over prompts 2.3
# times.
BFLOAT16_RATE = 0.75
CPU = torch.device("cpu")


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the GFLOP/s of a square matrix product, best of `ROUNDS`."""
    side = FIRST_SIDE
    seconds = _product_seconds(device, dtype, side)
    while seconds < MIN_SECONDS and side < LARGEST_SIDE:
        side *= 2
        seconds = _product_seconds(device, dtype, side)
    return 2 * side**3 / seconds / 1e9


def synchronize(device: torch.device) -> None:
    """Wait until all operations queued on a GPU have finished; return at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@lru_cache(maxsize=1)
def computes_bfloat16_fast() -> bool:
    """Return true if this machine's CPU had better compute in bfloat16 than in float32.

    A CPU without instructions for it is several times slower (measured on one with AVX2 only: 19
    against 130 GFLOP/s). Instructions alone do not decide: a Xeon with AVX512-BF16 whose AMX was
    hidden from the virtual machine reached 170 in bfloat16 and 327 in float32; another one 415 in
    bfloat16. So the rates are compared, once for a kind of CPU: all processes and later commands of
    a machine have to agree, or rounding would differ between them.
    """
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    entry = _entry()
    with one_process_at_a_time(entry):
        known = _recall(entry)
        if known is None:
            known = _product_seconds(CPU, torch.float32, CHOICE_SIDE) / _product_seconds(
                CPU, torch.bfloat16, CHOICE_SIDE
            )
            # Without a cache that can be written, it is measured again the next time.
            with suppress(OSError):
                write_json(entry, {"bfloat16_over_float32": known})
    return known >= BFLOAT16_RATE


def _product_seconds(device: torch.device, dtype: torch.dtype, side: int) -> float:
    # Random values: on constant ones a GPU draws less power and is faster than in a training.
    values = torch.randn(side, side, generator=torch.Generator().manual_seed(0))
    matrix = values.to(device, dtype)
    seconds = []
    for _ in range(ROUNDS):
        synchronize(device)
        started = time.perf_counter()
        matrix @ matrix
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _entry() -> Path:
    """Return the file of this kind of CPU; a cluster's machines may share the cache folder."""
    details = Path("/proc/cpuinfo")
    processor = details.read_text(encoding="utf-8").splitlines() if details.is_file() else []
    # Virtual machines hide features from processors of the same name.
    kind = sorted({line for line in processor if line.startswith(("model", "flags", "stepping"))})
    identity = json_sha256([kind, machine(), torch.__version__])
    return cache_directory() / "matrix-rates" / f"{identity}.json"


def _recall(entry: Path) -> float | None:
    """Return the ratio that was measured before; `None` if there is none that can be read."""
    with suppress(LoraKitError):
        known = read_json(entry, LoraKitError).get("bfloat16_over_float32")
        return known if isinstance(known, float) else None
    return None
