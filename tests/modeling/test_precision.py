"""TF32 is used where it was asked for, and its rounding is measured as that of half precision."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_kit.backbone.load import Backbone
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.evaluation.engine import rounding
from lora_kit.evaluation.engine.scoring import Scorer
from lora_kit.evaluation.requests import LossRequest
from lora_kit.modeling import precision
from lora_kit.modeling.precision import TF32_EPS, epsilon, in_tf32, tf32_products


def model(dtype: torch.dtype) -> Any:
    return SimpleNamespace(dtype=dtype)


def test_float32_on_a_gpu_is_multiplied_in_tf32_within_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "input_device", lambda _: torch.device("cuda"))
    wide, half = model(torch.float32), model(torch.bfloat16)
    assert not in_tf32(wide)
    with tf32_products(wide):
        assert torch.get_float32_matmul_precision() == "high"
        assert in_tf32(wide)
        assert epsilon(wide) == TF32_EPS == torch.finfo(torch.float16).eps
        assert epsilon(half) == torch.finfo(torch.bfloat16).eps
    assert torch.get_float32_matmul_precision() == "highest"
    assert epsilon(wide) == torch.finfo(torch.float32).eps
    with tf32_products(half):
        assert torch.get_float32_matmul_precision() == "highest"


def test_nothing_changes_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "input_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", pytest.fail)
    with tf32_products(model(torch.float32)):
        assert not in_tf32(model(torch.float32))


def test_the_rounding_of_tf32_is_measured(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(tiny_backbone.model, tiny_backbone.tokenizer, ())
    probe = LossRequest(Example(tuple(range(5, 25)), (IGNORE_INDEX, *range(6, 25))))
    assert rounding.RoundingBound.measure(scorer, [probe]).rounding is None
    monkeypatch.setattr(rounding, "in_tf32", lambda _: True)
    monkeypatch.setattr(rounding, "epsilon", lambda _: TF32_EPS)
    (found,) = rounding.RoundingBound.measure(scorer, [probe]).rounding or ()
    assert 1e-5 < found < 1e-2
