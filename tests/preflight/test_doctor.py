"""`lora-kit doctor` tries each trap on this machine and reports those without a guard."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import bitsandbytes.functional
import bitsandbytes.nn.modules
import pytest
import torch
from rich.console import Console

from lora_kit.adapter import peft_methods
from lora_kit.cli import main
from lora_kit.merging import verify
from lora_kit.metrics import load as metrics
from lora_kit.modeling import generation
from lora_kit.preflight import checks, data_checks, doctor, launch_checks
from lora_kit.preflight.doctor import TRAPS, Diagnosis, TrapFinding, Version, quantization_works
from lora_kit.preflight.show_doctor import show_diagnosis
from lora_kit.preflight.traps import data as data_traps
from lora_kit.preflight.traps import launching, weights
from lora_kit.preflight.traps.specimens import quantized_layer
from lora_kit.preflight.traps.trap import Trap

BY_NAME = {trap.name: trap for trap in TRAPS}


@pytest.mark.parametrize("name", BY_NAME)
def test_the_trap_is_guarded(name: str) -> None:
    assert BY_NAME[name].is_guarded()


@pytest.mark.parametrize("name", [trap.name for trap in TRAPS if trap.is_present])
def test_the_trap_is_present_in_the_tested_versions(name: str) -> None:
    """If this fails, a library has fixed the trap and its guard can be removed."""
    trap = BY_NAME[name]
    assert trap.is_present is not None
    # Repacking can be enabled on any CPU, but bitsandbytes enables it only on some.
    shown = weights.repacking_ruins_weights if name == "repacked 4-bit weights" else trap.is_present
    assert shown()


@pytest.mark.parametrize("has_it", [True, False])
def test_repacking_is_there_where_its_instructions_are(
    has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitsandbytes.functional, "has_avx512bf16", lambda: has_it)
    assert weights.repacking_is_present() == has_it


def test_weights_that_are_not_repacked_are_not_ruined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a version of bitsandbytes without the defect."""
    monkeypatch.setattr(
        bitsandbytes.nn.modules, "_convert_weight_packed_for_cpu", lambda *as_they_are: as_they_are
    )
    assert not weights.repacking_ruins_weights()


def nothing(*_: Any, **__: Any) -> None:
    """Replace a removed guard."""


def harmless(made: Any) -> Callable[..., Any]:
    return lambda *_, **__: made


@contextmanager
def forgetful(model: Any) -> Iterator[None]:
    model.base_model.disable_adapter_layers()
    yield
    model.base_model.enable_adapter_layers()


# For each trap: owner and name of its guard, and the substitute that removes the guard.
WITHOUT_GUARD: dict[str, tuple[Any, str, Any]] = {
    "repacked 4-bit weights": (weights, "guard_quantized_modules", harmless(())),
    "adapters cast to bfloat16": (checks, "require_float32_adapter", nothing),
    "tied embeddings": (checks, "refuse_trained_tied_embeddings", nothing),
    "fused experts": (checks, "check_expert_coverage", nothing),
    "quantized checkpoints": (checks, "refuse_quantized_checkpoint", nothing),
    "merging into 4 bits": (verify, "compare_merged", harmless(SimpleNamespace(passed=True))),
    "heads of words": (peft_methods, "without_head_of_words", harmless({})),
    "misspelt targets": (weights, "wrap_with_adapter", nothing),
    "adapter left disabled": (weights, "adapter_disabled", forgetful),
    "a copy of the head for each row": (
        generation,
        "contiguous_head",
        lambda _: nullcontext(),
    ),
    "all labels masked": (data_checks, "require_supervised_tokens", nothing),
    "no end of turn": (data_checks, "require_supervised_end_of_turn", nothing),
    "double BOS": (data_checks, "refuse_double_bos", nothing),
    "packing leaks": (data_checks, "packed_difference", harmless(0.0)),
    "checkpointing without input gradients": (data_traps, "require_gradient", nothing),
    "accelerate falls back": (launch_checks, "require_requested_launch", nothing),
    "sharded 4-bit weights": (launch_checks, "refuse_sharded_quantization", nothing),
    "metrics fetched by name": (metrics, "load_metric", nothing),
    "processes on one device": (launch_checks, "require_weights_on_process_device", nothing),
}


@pytest.mark.parametrize("name", WITHOUT_GUARD)
def test_the_trap_is_not_caught_without_its_guard(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, guard, substitute = WITHOUT_GUARD[name]
    monkeypatch.setattr(owner, guard, substitute)
    assert not BY_NAME[name].is_guarded()


def test_each_trap_says_what_goes_wrong_and_where_it_is_guarded() -> None:
    assert len(BY_NAME) == len(TRAPS) == 21
    assert all(trap.wrong.endswith(".") and trap.guard for trap in TRAPS)
    assert launching.LAUNCH_TRAPS[0].name == "accelerate falls back"


@pytest.mark.parametrize("quantization", doctor.QUANTIZATIONS)
def test_a_quantized_layer_computes_what_its_weights_say(quantization: str) -> None:
    assert quantization_works(quantization, torch.device("cpu"))


def test_a_layer_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes.functional as bnb

    right = bnb.dequantize_4bit
    monkeypatch.setattr(bnb, "dequantize_4bit", lambda *a, **k: right(*a, **k).roll(1, 0))
    assert not quantization_works("nf4", torch.device("cpu"))
    right = bnb.int8_vectorwise_dequant
    monkeypatch.setattr(bnb, "int8_vectorwise_dequant", lambda *a: right(*a).roll(1, 0))
    assert not quantization_works("int8", torch.device("cpu"))


@pytest.mark.parametrize("quantization", doctor.QUANTIZATIONS)
def test_a_layer_is_tried_on_the_device_that_computes(
    quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device without kernels, such as torch's own without values, nothing works."""
    tried: list[torch.device] = []

    def layer_on(quantization: str, device: torch.device) -> Any:
        tried.append(device)
        return quantized_layer(quantization, device)

    monkeypatch.setattr(doctor, "quantized_layer", layer_on)
    assert not quantization_works(quantization, torch.device("meta"))
    assert tried == [torch.device("meta")]


def test_the_diagnosis_tries_the_compute_device(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, torch.device]] = []
    device = torch.device("cuda", 3)
    monkeypatch.setattr(doctor, "process_state", lambda: SimpleNamespace(device=device))
    monkeypatch.setattr(doctor, "device_memory", lambda _: 0)
    monkeypatch.setattr(doctor, "matrix_rate", lambda *_: 1.0)
    monkeypatch.setattr(doctor, "quantization_works", lambda *what: not tried.append(what))
    monkeypatch.setattr(doctor, "TRAPS", ())
    assert doctor.diagnose().quantizations == dict.fromkeys(("nf4", "fp4", "int8"), True)
    assert {where for _, where in tried} == {device}


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
            TrapFinding(f"trap {number}", "Wrong.", "by a guard", None, one)
            for number, one in enumerate(guarded)
        ),
    )


def test_unguarded_traps_are_reported_last(capsys: pytest.CaptureFixture[str]) -> None:
    show_diagnosis(diagnosis(True, False), Console(width=140))
    shown = capsys.readouterr().out
    assert "torch 2.14.0 (tested: 2.13)" in shown
    assert "not guarded: trap 1." in shown.splitlines()[-1]


@pytest.mark.parametrize(("guarded", "status"), [(True, 0), (False, 2)])
def test_the_exit_status_says_whether_all_is_guarded(
    guarded: bool,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda: diagnosis(guarded))
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--json"])
    assert caught.value.code == status
    assert json.loads(capsys.readouterr().out)["healthy"] is guarded


def test_the_diagnosis_of_this_machine_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Trap("a trap", "Wrong.", "by a guard", lambda: True, lambda: True)
    monkeypatch.setattr(doctor, "TRAPS", (tried,))
    found = doctor.diagnose()
    assert found.healthy
    assert found.findings == (TrapFinding("a trap", "Wrong.", "by a guard", True, True),)
    assert {version.name for version in found.versions} == set(doctor.TESTED_VERSIONS)
    assert found.machine["memory"] > 10**9
    assert found.quantizations["nf4"]
