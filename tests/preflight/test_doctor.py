"""`lora-kit doctor` tries each trap out on this machine, and says so where one is not caught."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import bitsandbytes.functional
import bitsandbytes.nn.modules
import pytest
import torch
from rich.console import Console

from lora_kit.cli import main
from lora_kit.merging import verify
from lora_kit.metrics import load as metrics
from lora_kit.preflight import checks, data_checks, doctor
from lora_kit.preflight.doctor import TRAPS, Diagnosis, Finding, Version, quantization_works
from lora_kit.preflight.show_doctor import show_diagnosis
from lora_kit.preflight.traps import launching, samples, weights
from lora_kit.preflight.traps.trap import Trap

BY_NAME = {trap.name: trap for trap in TRAPS}


@pytest.mark.parametrize("name", BY_NAME)
def test_the_trap_is_caught(name: str) -> None:
    assert BY_NAME[name].is_caught()


@pytest.mark.parametrize("name", [trap.name for trap in TRAPS if trap.is_there])
def test_the_trap_is_there_in_the_versions_that_are_tested_with(name: str) -> None:
    """Where this fails, a library has mended something, and the guard may go."""
    trap = BY_NAME[name]
    assert trap.is_there is not None
    # What it does to weights shows on any CPU; that it is done at all, on some.
    shown = weights.repacking_ruins_weights if name == "repacked 4-bit weights" else trap.is_there
    assert shown()


@pytest.mark.parametrize("has_it", [True, False])
def test_repacking_is_there_where_its_instructions_are(
    has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitsandbytes.functional, "has_avx512bf16", lambda: has_it)
    assert weights.repacking_is_there() == has_it


def test_weights_that_are_not_repacked_are_not_ruined(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a version of bitsandbytes that has mended it."""
    monkeypatch.setattr(
        bitsandbytes.nn.modules, "_convert_weight_packed_for_cpu", lambda *as_they_are: as_they_are
    )
    assert not weights.repacking_ruins_weights()


def nothing(*_: Any, **__: Any) -> None:
    """What is left of a guard that is taken out."""


def harmless(made: Any) -> Callable[..., Any]:
    return lambda *_, **__: made


@contextmanager
def forgetful(model: Any) -> Iterator[None]:
    model.base_model.disable_adapter_layers()
    yield
    model.base_model.enable_adapter_layers()


# For each trap: the guard, and what stands in its place once it is taken out.
WITHOUT_GUARD: dict[str, tuple[Any, str, Any]] = {
    "repacked 4-bit weights": (weights, "guard_quantized_modules", harmless(())),
    "adapters cast to bfloat16": (checks, "float32_masters", nothing),
    "tied embeddings": (checks, "untied", nothing),
    "fused experts": (checks, "experts_covered", nothing),
    "quantized checkpoints": (checks, "plain_where_said_plain", nothing),
    "merging into 4 bits": (verify, "compare", harmless(SimpleNamespace(passed=True))),
    "misspelt targets": (weights, "wrapped", nothing),
    "an adapter left off": (weights, "adapter_disabled", forgetful),
    "all labels masked": (data_checks, "something_to_learn", nothing),
    "no end of turn": (data_checks, "learns_to_stop", nothing),
    "two beginnings": (data_checks, "begins_once", nothing),
    "packing leaks": (data_checks, "packed_difference", harmless(0.0)),
    "checkpointing without input gradients": (samples, "require_gradient", nothing),
    "accelerate falls back": (checks, "require_what_was_asked", nothing),
    "sharded 4-bit weights": (checks, "sharded_in_full_precision", nothing),
    "metrics fetched by name": (metrics, "load_metric", nothing),
    "processes on one device": (checks, "on_the_device_of_this_process", nothing),
}


@pytest.mark.parametrize("name", WITHOUT_GUARD)
def test_without_its_guard_the_trap_is_not_caught(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, guard, substitute = WITHOUT_GUARD[name]
    monkeypatch.setattr(owner, guard, substitute)
    assert not BY_NAME[name].is_caught()


def test_each_trap_says_what_goes_wrong_and_where_it_is_guarded() -> None:
    assert len(BY_NAME) == len(TRAPS) == 19
    assert all(trap.wrong.endswith(".") and trap.guard for trap in TRAPS)
    assert launching.LAUNCH_TRAPS[0].name == "accelerate falls back"


@pytest.mark.parametrize("quantization", doctor.QUANTIZATIONS)
def test_a_quantized_layer_computes_what_its_weights_say(quantization: str) -> None:
    assert quantization_works(quantization)


def test_a_layer_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes.functional as bnb

    right = bnb.dequantize_4bit
    monkeypatch.setattr(bnb, "dequantize_4bit", lambda *a, **k: right(*a, **k).roll(1, 0))
    assert not quantization_works("nf4")


def test_a_matrix_product_is_timed_in_under_two_seconds() -> None:
    import time

    started = time.monotonic()
    rates = [
        doctor.matrix_rate(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.bfloat16)
    ]
    assert time.monotonic() - started < 4, "twice what it may take, for others run beside it"
    assert all(rate > 0.1 for rate in rates)


def test_a_patch_of_a_version_that_was_checked_counts_as_checked() -> None:
    assert Version("torch", "2.13.1+cpu", "2.13").is_checked
    assert not Version("torch", "2.14.0", "2.13").is_checked
    assert not Version("peft", "0.210.0", "0.21").is_checked


def diagnosis(*guarded: bool) -> Diagnosis:
    return Diagnosis(
        device="cpu",
        machine={
            "system": "Linux",
            "architecture": "x86_64",
            "cores": 2,
            "cpu_capability": "AVX2",
            "memory": 16 * 10**9,
            "accelerators": [],
        },
        versions=(Version("torch", "2.14.0", "2.13"),),
        rates={"float32": 100.0},
        quantizations={"nf4": True},
        findings=tuple(
            Finding(f"trap {number}", "Wrong.", "by a guard", None, one)
            for number, one in enumerate(guarded)
        ),
    )


def test_what_is_not_guarded_is_said_last(capsys: pytest.CaptureFixture[str]) -> None:
    show_diagnosis(diagnosis(True, False), Console(width=140))
    shown = capsys.readouterr().out
    assert "torch 2.14.0 (checked: 2.13)" in shown
    assert "not guarded here: trap 1." in shown.splitlines()[-1]


@pytest.mark.parametrize(("guarded", "status"), [(True, 0), (False, 2)])
def test_the_exit_status_says_whether_all_is_guarded(
    guarded: bool,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: diagnosis(guarded))
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--json"])
    assert caught.value.code == status
    assert json.loads(capsys.readouterr().out)["healthy"] is guarded


def test_this_machine_is_examined_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Trap("a trap", "Wrong.", "by a guard", lambda: True, lambda: True)
    monkeypatch.setattr(doctor, "TRAPS", (tried,))
    found = doctor.examine()
    assert found.healthy
    assert found.findings == (Finding("a trap", "Wrong.", "by a guard", True, True),)
    assert {version.name for version in found.versions} == set(doctor.CHECKED)
    assert found.machine["memory"] > 10**9
    assert found.quantizations["nf4"]
