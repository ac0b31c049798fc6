"""Diagnose this machine: library versions, devices, speed and the known traps."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from lora_kit.preflight.device import device_memory
from lora_kit.preflight.traps.data import DATA_TRAPS
from lora_kit.preflight.traps.heads import HEAD_TRAPS
from lora_kit.preflight.traps.launching import LAUNCH_TRAPS
from lora_kit.preflight.traps.specimens import quantized_layer
from lora_kit.preflight.traps.trap import Trap
from lora_kit.preflight.traps.weights import WEIGHT_TRAPS
from lora_kit.runtime.machine import machine, versions
from lora_kit.runtime.matrix_rate import matrix_rate
from lora_kit.runtime.processes import process_state

TRAPS: tuple[Trap, ...] = (*WEIGHT_TRAPS, *HEAD_TRAPS, *DATA_TRAPS, *LAUNCH_TRAPS)
# Versions in which the traps were found and with which the tests run (constraints.txt).
TESTED_VERSIONS = {
    "torch": "2.13",
    "transformers": "5.23",
    "peft": "0.21",
    "trl": "1.16",
    "bitsandbytes": "0.50",
    "accelerate": "1.15",
    "datasets": "5.2",
}
QUANTIZATIONS = ("nf4", "fp4", "int8")
MIN_COSINE = 0.999


@dataclass(frozen=True)
class Version:
    """Version of one library.

    Attributes:
        name: name of the package.
        found: installed version.
        checked: tested version, major and minor.
    """

    name: str
    found: str
    checked: str

    @property
    def is_checked(self) -> bool:
        """True if the installed version is the tested one or a patch of it."""
        return self.found == self.checked or self.found.startswith(f"{self.checked}.")


@dataclass(frozen=True)
class TrapFinding:
    """Result of trying one trap on this machine.

    Attributes:
        trap: name of the trap.
        wrong: consequence of the trap.
        guard: prevention, and its place.
        present: true if the installed versions have the trap; `None` if that depends on the recipe.
        guarded: true if the guard worked when the trap was tried.
    """

    trap: str
    wrong: str
    guard: str
    present: bool | None
    guarded: bool


@dataclass(frozen=True)
class Diagnosis:
    """Result of `lora-kit doctor`.

    Attributes:
        device: compute device of this process.
        machine: hardware, and memory of the device in bytes.
        versions: versions of the libraries.
        rates: GFLOP/s of a matrix product, by dtype.
        quantizations: by name, true if output and gradient match the dequantized weights on the
            compute device.
        findings: one finding per trap.
    """

    device: str
    machine: dict[str, Any]
    versions: tuple[Version, ...]
    rates: dict[str, float]
    quantizations: dict[str, bool]
    findings: tuple[TrapFinding, ...]

    @property
    def healthy(self) -> bool:
        """True if every trap is guarded."""
        return all(finding.guarded for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as JSON values."""
        return {"healthy": self.healthy, **asdict(self)}


def diagnose() -> Diagnosis:
    """Try every trap and measure this machine; takes some seconds besides importing libraries."""
    device = process_state().device
    installed = versions()
    return Diagnosis(
        device=str(device),
        machine=machine() | {"memory": device_memory(device)},
        versions=tuple(
            Version(name, installed[name], tested) for name, tested in TESTED_VERSIONS.items()
        ),
        rates={
            str(dtype).removeprefix("torch."): matrix_rate(device, dtype)
            for dtype in (torch.float32, torch.bfloat16)
        },
        quantizations={name: quantization_works(name, device) for name in QUANTIZATIONS},
        findings=tuple(
            TrapFinding(
                trap=trap.name,
                wrong=trap.wrong,
                guard=trap.guard,
                present=trap.is_present() if trap.is_present else None,
                guarded=trap.is_guarded(),
            )
            for trap in TRAPS
        ),
    )


def quantization_works(quantization: str, device: torch.device) -> bool:
    """Return true if a layer's output and input gradient match its dequantized weights.

    Args:
        quantization: one of `QUANTIZATIONS`.
        device: device that computes.
    """
    inputs = torch.linspace(-1, 1, 4 * 64, device=device).view(4, 64)
    ours, theirs = (inputs.clone().requires_grad_(True) for _ in range(2))
    try:
        layer = quantized_layer(quantization, device)
        out = layer(ours)
        (ours_grad,) = torch.autograd.grad(out.square().sum(), ours)
        expected = theirs @ _dequantized(layer).t()
    except RuntimeError:
        # A build of bitsandbytes without a kernel for this device, or one that has no gradient.
        return False
    (theirs_grad,) = torch.autograd.grad(expected.square().sum(), theirs)
    return _similar(out.detach(), expected.detach()) and _similar(ours_grad, theirs_grad)


def _dequantized(layer: Any) -> torch.Tensor:
    """Return the weights of a quantized layer that has computed, (out, in) float32."""
    import bitsandbytes.functional as bnb

    if layer.weight.dtype == torch.int8:
        # The scales are in the layer's state since its first forward pass.
        weight: torch.Tensor = bnb.int8_vectorwise_dequant(layer.state.CB, layer.state.SCB)
    else:
        weight = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.detach()


def _similar(one: torch.Tensor, other: torch.Tensor) -> bool:
    cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)
    return float(cosine) > MIN_COSINE
