"""Versions and hardware that a run records."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest

import lora_kit
from lora_kit.runtime.machine import versions

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
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert versions()["lora-kit"] == lora_kit.__version__ == declared
