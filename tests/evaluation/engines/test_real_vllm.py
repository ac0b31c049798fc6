"""The real model and an adapter, answered by the real vLLM on the CPU."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lora_kit.evaluation.agreement import AGREEMENT
from lora_kit.evaluation.ledger import read_ledger
from lora_kit.pipeline.evaluation import evaluate
from lora_kit.pipeline.shipped_arms import Programs
from lora_kit.recipe.backbone import BackboneSpec

pytestmark = pytest.mark.slow
ENVIRONMENT = Path(sys.prefix) / "vllm"
SUITE: dict[str, Any] = {
    "name": "keep",
    "role": "retention",
    "tasks": [
        {"name": "quiz", "kind": "multiple_choice", "source": "reasoning", "limit": 24}
        | {"margin": 0.4},
        {"name": "prose", "kind": "loss", "source": "python-reference", "limit": 4}
        | {"max_length": 64, "margin": 1},
        {"name": "follow", "kind": "instructions", "source": "instructions", "limit": 6}
        | {"max_new_tokens": 16, "margin": 0.9},
    ],
}


@pytest.fixture
def adapter(smollm: Path, tmp_path: Path) -> Path:
    """Return an adapter with a small effect on all linear layers."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(smollm)
    config = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_vllm_agrees_with_transformers(
    quantization: str, adapter: Path, smollm: Path, tmp_path: Path
) -> None:
    if not (ENVIRONMENT / "bin" / "python").exists():
        pytest.skip("needs vLLM: make .venv/vllm/.installed")
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(SUITE))
    backbone = BackboneSpec.model_validate(
        {"model": str(smollm), "dtype": "float32", "quantization": quantization}
    )
    evaluate(adapter, [str(path)], backbone)
    done = evaluate(
        adapter, [str(path)], backbone, programs=Programs(engine="vllm", vllm=ENVIRONMENT)
    )
    assert done.directory.name == "evaluation-keep-vllm"
    assert {(one.arm, one.other) for one in done.agreement} == {
        ("base", "transformers"),
        ("adapter", "transformers"),
    }
    for one in done.agreement:
        assert one.changed <= 0.05 * one.items
        assert one.max_nats is None or one.max_nats < 2e-3
    assert (done.directory / AGREEMENT).is_file()
    ledger = read_ledger(done.directory / "ledger.parquet")
    base, adapted = ([e.score for e in ledger if e.arm == arm] for arm in ("base", "adapter"))
    assert base != adapted
