"""Hints of settings with which a training takes less time."""

import numpy as np
import pytest
import torch
from transformers import BloomConfig, LlamaConfig

from lora_kit.preflight import speed_hints
from lora_kit.preflight.gpus import MIB
from lora_kit.preflight.guidance import Hint
from lora_kit.preflight.memory import MemoryEstimate, estimate_memory
from lora_kit.preflight.micro_batch import MicroBatch
from lora_kit.preflight.speed_hints import attention_hints, checkpointing_hints, packing_hints
from lora_kit.recipe.recipe import Recipe

CONFIG = LlamaConfig(
    vocab_size=1000,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
BATCH = MicroBatch(rows=4, length=2048, supervised=64, masked=True)
CHECKPOINTING = "training.gradient_checkpointing=true"
GPU = torch.device("cuda")


def recipe(*overrides: str) -> Recipe:
    return Recipe.load("quickstart", ["backbone.dtype=bfloat16", *overrides])


def memory(wanted: Recipe) -> MemoryEstimate:
    return estimate_memory(wanted, CONFIG, BATCH, "cuda", 0)


def loadable(hints: list[Hint]) -> list[str]:
    """Return the assignments of hints, after a recipe with them was loaded."""
    assignments = [one for hint in hints for one in hint.assignments]
    assert recipe(*assignments)
    return assignments


def test_activations_that_fit_are_kept() -> None:
    kept, recomputed = memory(recipe()).total, memory(recipe(CHECKPOINTING))
    assert recomputed.total < kept
    enough, short = (
        loadable(list(checkpointing_hints(recipe(CHECKPOINTING), CONFIG, recomputed, available)))
        for available in (kept, kept - 1)
    )
    assert enough == ["training.gradient_checkpointing=false"]
    assert short == []
    assert list(checkpointing_hints(recipe(), CONFIG, memory(recipe()), 10 * kept)) == []


def test_without_a_gpu_at_hand_the_smallest_that_is_needed_anyway_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept, recomputed = memory(recipe()).total, memory(recipe(CHECKPOINTING))
    known = {"large": kept // MIB + 1}
    monkeypatch.setattr("lora_kit.preflight.gpus.GPUS", known)
    (hint,) = checkpointing_hints(recipe(CHECKPOINTING), CONFIG, recomputed, None)
    assert "fit on large" in hint.reason
    known["small"] = recomputed.total // MIB + 1
    assert list(checkpointing_hints(recipe(CHECKPOINTING), CONFIG, recomputed, None)) == []


def padded(lengths: list[int], *overrides: str, device: torch.device = GPU) -> list[str]:
    tokens = np.array(lengths, dtype=np.int32)
    return loadable(list(packing_hints(recipe(*overrides), tokens, 1, device)))


def test_much_padding_is_packed_on_a_gpu() -> None:
    assert padded([100, 52, 51, 51]) == ["data.packing=true"]
    assert padded([100, 52, 51, 51], device=torch.device("cpu")) == []
    assert padded([100, 95, 90, 90]) == []
    assert padded([100, 52, 51, 51], "data.packing=true") == []
    assert padded([100, 52, 51, 51], "backbone.attention=varlen") == [], "unpadded by default"


def test_flash_attention_is_proposed_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ("backbone.attention=sdpa", "backbone.attention=varlen")
    monkeypatch.setattr(speed_hints, "flash_attention_problem", lambda *_: None)
    found = {one: loadable(list(attention_hints(recipe(one), CONFIG, GPU))) for one in chosen}
    assert found == {
        "backbone.attention=sdpa": ["backbone.attention=flash_attention_2"],
        "backbone.attention=varlen": [],
    }
    assert not list(attention_hints(recipe(chosen[0]), CONFIG, torch.device("cpu")))
    # Where the recipe would be refused, or would not be faster for it.
    for other in ("backbone.dtype=float32", "data.packing=false"):
        assert not list(attention_hints(recipe(chosen[0], other), CONFIG, GPU))
    large = LlamaConfig(hidden_size=1024, num_attention_heads=2, num_key_value_heads=2)
    for config in (large, BloomConfig()):
        assert not list(attention_hints(recipe(chosen[0]), config, GPU))
    monkeypatch.setattr(speed_hints, "flash_attention_problem", lambda *_: "not installed")
    assert not list(attention_hints(recipe(chosen[0]), CONFIG, GPU))
