"""Versions, hardware and peak memory that a run records."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest
import torch

import lora_kit
from lora_kit.runtime.machine import (
    GpuPeak,
    gpu_peak,
    installed_version,
    peak_memory,
    versions,
)

ROOT = Path(__file__).parents[2]


def test_a_checkout_that_is_not_installed_knows_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine that a checkout is copied to, `python -m lora_kit` works from its root."""
    of_package = importlib.metadata.version

    def version(name: str) -> str:
        if name == "lora-kit":
            raise importlib.metadata.PackageNotFoundError(name)
        return of_package(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    installed_version.cache_clear()
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert versions()["lora-kit"] == lora_kit.__version__ == declared


def test_main_memory_is_that_of_the_process() -> None:
    before = peak_memory()
    held = torch.zeros(60_000_000)
    assert peak_memory() >= before
    assert peak_memory() > held.nbytes


def test_the_peak_on_gpus_is_that_of_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_peak() is None or torch.cuda.is_available()
    peaks = [(3, 4), (50, 60), (0, 0)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(peaks))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda gpu: peaks[gpu][0])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda gpu: peaks[gpu][1])
    assert gpu_peak() == GpuPeak(allocated=50, reserved=60)
