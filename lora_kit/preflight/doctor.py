"""This machine and this stack: versions, devices, speed, and the known traps."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lora_kit.preflight.device import device_memory, wait
from lora_kit.preflight.traps.launching import LAUNCH_TRAPS
from lora_kit.preflight.traps.samples import DATA_TRAPS
from lora_kit.preflight.traps.specimens import four_bit_layer
from lora_kit.preflight.traps.trap import Trap
from lora_kit.preflight.traps.weights import WEIGHT_TRAPS
from lora_kit.runs.directory import machine, versions
from lora_kit.runtime.processes import process_state

TRAPS: tuple[Trap, ...] = (*WEIGHT_TRAPS, *DATA_TRAPS, *LAUNCH_TRAPS)
# What the traps were found in, and the package's tests are run with (constraints.txt).
CHECKED = {
    "torch": "2.13",
    "transformers": "5.23",
    "peft": "0.21",
    "trl": "1.16",
    "bitsandbytes": "0.50",
    "accelerate": "1.15",
    "datasets": "5.2",
}
# Rows and columns of the matrices that are multiplied. The first product tells whether larger ones
# are worth the wait: bfloat16 takes a CPU without instructions for it a hundred times as long.
FIRST_SIDE, LARGEST_SIDE = 128, 8192
LONG_ENOUGH = 0.02
ROUNDS = 3
QUANTIZATIONS = ("nf4", "fp4")
LEAST_COSINE = 0.999


@dataclass(frozen=True)
class Version:
    """One library.

    Attributes:
        name: of the package.
        found: its version here.
        checked: the version that the traps were looked for in.
    """

    name: str
    found: str
    checked: str

    @property
    def is_checked(self) -> bool:
        """Whether this release was looked at; patches of it count as the same."""
        return self.found == self.checked or self.found.startswith(f"{self.checked}.")


@dataclass(frozen=True)
class Finding:
    """One trap on this machine.

    Attributes:
        trap: its name.
        wrong: what goes wrong.
        guard: what is done against it, and where.
        present: whether the installed versions have it; `None` where it depends on what is brought.
        guarded: whether it was caught when it was tried.
    """

    trap: str
    wrong: str
    guard: str
    present: bool | None
    guarded: bool


@dataclass(frozen=True)
class Diagnosis:
    """What `lora-kit doctor` finds.

    Attributes:
        device: that is computed on.
        machine: the hardware, and bytes of memory.
        versions: of the libraries.
        rates: GFLOP/s of a matrix product, by dtype.
        quantizations: whether each one computes forward and backward what its weights say.
        findings: one for each trap.
    """

    device: str
    machine: dict[str, Any]
    versions: tuple[Version, ...]
    rates: dict[str, float]
    quantizations: dict[str, bool]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether every trap is guarded."""
        return all(finding.guarded for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"healthy": self.healthy, **asdict(self)}


def examine() -> Diagnosis:
    """Try all of it out; takes as long as importing the libraries does, and some seconds."""
    device = process_state().device
    found = versions()
    return Diagnosis(
        device=str(device),
        machine=machine() | {"memory": device_memory(device)},
        versions=tuple(Version(name, found[name], checked) for name, checked in CHECKED.items()),
        rates={
            str(dtype).removeprefix("torch."): matrix_rate(device, dtype)
            for dtype in (torch.float32, torch.bfloat16)
        },
        quantizations={name: quantization_works(name) for name in QUANTIZATIONS},
        findings=tuple(_finding(trap) for trap in TRAPS),
    )


def _finding(trap: Trap) -> Finding:
    return Finding(
        trap=trap.name,
        wrong=trap.wrong,
        guard=trap.guard,
        present=trap.is_there() if trap.is_there else None,
        guarded=trap.is_caught(),
    )


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of a square matrix product, large enough to be timed, the best of a few rounds."""
    side = FIRST_SIDE
    seconds = _product_seconds(device, dtype, side)
    while seconds < LONG_ENOUGH and side < LARGEST_SIDE:
        side *= 2
        seconds = _product_seconds(device, dtype, side)
    return 2 * side**3 / seconds / 1e9


def _product_seconds(device: torch.device, dtype: torch.dtype, side: int) -> float:
    # Not of one number: a GPU draws less power for it, and is faster than it is in a training.
    numbers = torch.randn(side, side, generator=torch.Generator().manual_seed(0))
    matrix = numbers.to(device, dtype)
    found = []
    for _ in range(ROUNDS):
        wait(device)
        started = time.perf_counter()
        matrix @ matrix
        wait(device)
        found.append(time.perf_counter() - started)
    return min(found)


def quantization_works(quantization: str) -> bool:
    """Whether a 4-bit layer's output and input gradient are those of its dequantized weights."""
    import bitsandbytes.functional as bnb

    layer = four_bit_layer(quantization)
    weight = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    inputs = torch.linspace(-1, 1, 4 * 64).view(4, 64)
    ours, theirs = (inputs.clone().requires_grad_(True) for _ in range(2))
    out, expected = layer(ours), theirs @ weight.t()
    out.square().sum().backward()
    expected.square().sum().backward()
    if ours.grad is None or theirs.grad is None:
        return False
    return _alike(out.detach(), expected.detach()) and _alike(ours.grad, theirs.grad)


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)
    return float(cosine) > LEAST_COSINE
