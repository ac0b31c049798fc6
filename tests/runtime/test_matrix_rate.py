"""The dtype that a CPU computes in: by its rate, and the same one for all processes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lora_kit.runtime import matrix_rate as rates

FLOAT32 = 0.010


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[torch.dtype, float]]:
    """Seconds of a product by dtype, on a CPU with bfloat16 instructions and an empty cache."""
    seconds = {torch.float32: FLOAT32, torch.bfloat16: FLOAT32}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(rates, "_product_seconds", lambda _device, dtype, _side: seconds[dtype])
    rates.computes_bfloat16_fast.cache_clear()
    yield seconds
    rates.computes_bfloat16_fast.cache_clear()


@pytest.mark.parametrize(("seconds", "fast"), [(0.005, True), (0.010, True), (0.019, False)])
def test_the_measured_rate_decides(
    measured: dict[torch.dtype, float], seconds: float, fast: bool
) -> None:
    measured[torch.bfloat16] = seconds
    assert rates.computes_bfloat16_fast() == fast


def test_nothing_is_measured_without_instructions(
    measured: dict[torch.dtype, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    measured[torch.bfloat16] = FLOAT32 / 10
    assert not rates.computes_bfloat16_fast()
    assert not list(tmp_path.rglob("*.json"))


def test_a_later_process_takes_what_was_measured(measured: dict[torch.dtype, float]) -> None:
    assert rates.computes_bfloat16_fast()
    measured[torch.bfloat16] = 2 * FLOAT32
    rates.computes_bfloat16_fast.cache_clear()
    assert rates.computes_bfloat16_fast()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"bfloat16_over_float32": "fast"}'])
def test_an_unreadable_measurement_is_made_again(
    measured: dict[torch.dtype, float], tmp_path: Path, content: str
) -> None:
    assert rates.computes_bfloat16_fast()
    (entry,) = (tmp_path / "lora_kit" / "matrix-rates").glob("*.json")
    entry.write_text(content)
    measured[torch.bfloat16] = 2 * FLOAT32
    rates.computes_bfloat16_fast.cache_clear()
    assert not rates.computes_bfloat16_fast()
    assert json.loads(entry.read_text()) == {"bfloat16_over_float32": 0.5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rate_is_measured(dtype: torch.dtype) -> None:
    assert rates.matrix_rate(torch.device("cpu"), dtype) > 0.1


def test_the_side_grows_until_a_product_takes_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """bfloat16 without instructions ends at a small one, instead of after minutes."""
    sides = []

    def seconds(_device: torch.device, dtype: torch.dtype, side: int) -> float:
        sides.append(side)
        return side**3 / (1e9 if dtype == torch.float32 else 1e6)

    monkeypatch.setattr(rates, "_product_seconds", seconds)
    assert rates.matrix_rate(rates.CPU, torch.bfloat16) == pytest.approx(2e-3)
    assert sides == [128]
    assert rates.matrix_rate(rates.CPU, torch.float32) == pytest.approx(2)
    assert sides == [128, 128, 256, 512]
