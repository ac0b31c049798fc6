"""Memory of each process under data parallelism, ZeRO and FSDP."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

from lora_kit.preflight.memory import (
    CUDA_BASE,
    Footprint,
    MemoryEstimate,
    estimate_memory,
    footprint,
)
from lora_kit.preflight.micro_batch import MicroBatch
from lora_kit.preflight.sharding import DEEPSPEED_LIVE_PARAMETERS, Sharding
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.launch import Launch

WIDTH, BETWEEN, WORDS, LAYERS, RANK = 1024, 2048, 32_000, 6, 16
CONFIG = LlamaConfig(
    vocab_size=WORDS,
    hidden_size=WIDTH,
    intermediate_size=BETWEEN,
    num_hidden_layers=LAYERS,
    num_attention_heads=8,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)
BFLOAT16, FLOAT32 = 2, 4
# Four matrices of the attention, three of the MLP, two norms.
LAYER = 4 * WIDTH * WIDTH + 3 * WIDTH * BETWEEN + 2 * WIDTH
ADAPTER = RANK * (4 * 2 * WIDTH + 3 * (WIDTH + BETWEEN))
HEAD = WORDS * WIDTH
MASTERS = FLOAT32 * LAYERS * ADAPTER
PROCESSES = 8


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe.model_validate(
        {
            "name": "m",
            "backbone": {"model": "m", "quantization": "none", "dtype": "bfloat16"},
            "adapter": {"rank": RANK},
            "data": {"train": [{"source": "x"}]},
            "training": {"gradient_checkpointing": True},
        }
    )


@pytest.fixture(scope="module")
def whole(recipe: Recipe) -> Footprint:
    batch = MicroBatch(rows=1, length=64, supervised=64, masked=False)
    return footprint(recipe, CONFIG, batch, "cuda", CUDA_BASE)


def of(whole: Footprint, **launch: object) -> MemoryEstimate:
    launched = replace(Launch(asked=PROCESSES, processes=PROCESSES), **launch)  # type: ignore[arg-type]
    return whole.per_process(Sharding.of(launched))


def test_one_process_shares_nothing(recipe: Recipe, whole: Footprint) -> None:
    alone = whole.per_process(Sharding.of(Launch()))
    assert alone == estimate_memory(recipe, CONFIG, whole.batch, "cuda", CUDA_BASE)
    assert not {"gathered weights", "gradient buckets"} & alone.components.keys()


def test_data_parallel_processes_hold_everything_and_gradients_twice(whole: Footprint) -> None:
    alone, several = whole.per_process(Sharding()), of(whole, kind="MULTI_GPU")
    assert several.total - alone.total == MASTERS
    assert several.components["gradient buckets"] == MASTERS


def test_fsdp_divides_all_but_the_passes_and_gathers_two_layers_and_the_head(
    whole: Footprint,
) -> None:
    alone, several = whole.per_process(Sharding()), of(whole, fsdp=True, fsdp_version=2)
    gathered = 2 * (BFLOAT16 * LAYER + FLOAT32 * ADAPTER) + BFLOAT16 * HEAD
    assert several.components["gathered weights"] == gathered
    divided = ("other frozen weights", "adapter (float32)", "adapter gradients", "AdamW moments")
    for name in divided:
        assert several.components[name] == pytest.approx(alone.components[name] / PROCESSES, abs=1)
    kept = ("libraries", "activations", "logits", "allocator overhead")
    assert all(several.components[name] == alone.components[name] for name in kept)


def test_layers_that_stay_after_the_forward_pass_are_all_there(whole: Footprint) -> None:
    launch = Launch(processes=PROCESSES, fsdp=True, fsdp_version=2)
    kept = whole.per_process(Sharding.of(launch, reshard_after_forward=False))
    everything = BFLOAT16 * (LAYERS * LAYER + 2 * HEAD + WIDTH) + MASTERS
    assert kept.components["gathered weights"] == everything


def test_replicas_of_shards_divide_by_the_processes_of_one_replica(whole: Footprint) -> None:
    hybrid = of(whole, fsdp=True, fsdp_version=2, replicas=2)
    assert hybrid == whole.per_process(
        Sharding.of(Launch(processes=PROCESSES // 2, fsdp=True, fsdp_version=2))
    )


def test_packed_weights_are_divided_and_gathered_and_their_constants_are_whole(
    recipe: Recipe,
) -> None:
    packed = recipe.model_copy(
        update={"backbone": recipe.backbone.model_copy(update={"quantization": "nf4"})}
    )
    batch = MicroBatch(rows=1, length=64, supervised=64, masked=False)
    whole = footprint(packed, CONFIG, batch, "cuda", CUDA_BASE)
    several = of(whole, fsdp=True, fsdp_version=2).components
    matrices = LAYER - 2 * WIDTH
    # A byte for 64 weights, four bytes for 256 of these.
    constants = LAYERS * (matrices // 64 + 4 * matrices // 64 // 256)
    assert several["quantized weights"] == LAYERS * matrices // 2 // PROCESSES + constants
    norms = BFLOAT16 * 2 * WIDTH
    gathered = 2 * (matrices // 2 + norms + FLOAT32 * ADAPTER) + BFLOAT16 * HEAD
    assert several["gathered weights"] == gathered
    alone = whole.per_process(Sharding()).components
    assert alone["quantized weights"] == LAYERS * matrices // 2 + constants
    launch = Launch(processes=PROCESSES, fsdp=True, fsdp_version=2)
    offloaded = whole.per_process(Sharding.of(launch, offloaded=True)).components
    assert offloaded.pop("quantized weights") == constants
    assert offloaded.items() <= several.items()
    assert several.keys() - offloaded.keys() == {
        "quantized weights",
        "other frozen weights",
        "adapter (float32)",
        "adapter gradients",
        "AdamW moments",
    }


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "moments"),
    [(0, 1, 1, 1), (1, 1, 1, 8), (2, 1, 8, 8), (3, 8, 8, 8)],
)
def test_each_stage_of_zero_divides_one_thing_more(
    whole: Footprint, stage: int, weights: int, gradients: int, moments: int
) -> None:
    """Compare with figure 1 of Rajbhandari et al. 2020."""
    found = of(whole, deepspeed=True, zero_stage=stage, kind="DEEPSPEED").components
    assert found["adapter (float32)"] == pytest.approx(MASTERS / weights, abs=1)
    assert found["adapter gradients"] == pytest.approx(MASTERS / gradients, abs=1)
    assert found["AdamW moments"] == pytest.approx(2 * MASTERS / moments, abs=1)
    assert ("gathered weights" in found) == (stage == 3)


def test_deepspeed_keeps_as_many_parameters_as_it_may_but_no_more_than_there_are(
    whole: Footprint,
) -> None:
    sharding = Sharding.of(Launch(processes=2, deepspeed=True, zero_stage=3))
    everything = sum(p.numel() * p.element_size() for p in whole.fake.model.parameters())
    assert everything < DEEPSPEED_LIVE_PARAMETERS * BFLOAT16
    assert sharding.gathered_bytes(whole.fake, torch.bfloat16) == everything
    few = replace(sharding, live_parameters=10**8)
    assert few.gathered_bytes(whole.fake, torch.bfloat16) == 10**8 * BFLOAT16


def test_more_processes_never_hold_more(whole: Footprint) -> None:
    totals = [
        whole.per_process(Sharding.of(Launch(processes=n, fsdp=True, fsdp_version=2))).total
        for n in (2, 4, 8, 16)
    ]
    assert totals == sorted(totals, reverse=True)
