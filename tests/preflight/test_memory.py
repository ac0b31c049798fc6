"""Estimated memory of a training agrees with the measured memory."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoConfig, LlamaConfig, Trainer, TrainingArguments

from lora_kit.adapter import attach
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import load
from lora_kit.data.supervision import Example
from lora_kit.modeling.likelihood import GPU_CHUNK
from lora_kit.preflight import gpus
from lora_kit.preflight.fake_model import build_fake_model, stored_bytes
from lora_kit.preflight.gpus import find_fitting_change, fitting_gpus
from lora_kit.preflight.memory import Device, MemoryEstimate, estimate_memory
from lora_kit.preflight.micro_batch import MicroBatch, largest_micro_batch
from lora_kit.preflight.optimizer_memory import state_bytes
from lora_kit.preflight.show_estimate import show_estimate
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import RetentionSpec
from lora_kit.recipe.training import Optimizer
from lora_kit.runtime.errors import AdapterError
from lora_kit.training.micro_batcher import MicroBatcher
from lora_kit.training.optimizer_state import split_state
from tests.benchmarks.estimate import Setting, foretold, in_process, prepared


def llama(layers: int) -> LlamaConfig:
    """Return the configuration of Llama 3 8B with another number of layers."""
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )


LARGE = llama(layers=3)
BATCH = MicroBatch(rows=2, length=512, supervised=256, masked=True)


def recipe(
    quantization: str = "nf4",
    checkpointing: bool = False,
    dtype: str = "bfloat16",
    attention: str = "auto",
    **data: object,
) -> Recipe:
    backbone = {
        "model": "m",
        "quantization": quantization,
        "dtype": dtype,
        "attention": attention,
    }
    return Recipe.model_validate(
        {
            "name": "m",
            "backbone": backbone,
            "data": {"train": [{"source": "x"}], **data},
            "training": {"gradient_checkpointing": checkpointing},
        }
    )


@pytest.fixture
def tiny_config(tiny: Path) -> Any:
    return AutoConfig.from_pretrained(tiny)


def of(wanted: Recipe, batch: MicroBatch = BATCH, config: Any = LARGE) -> MemoryEstimate:
    return estimate_memory(wanted, config, batch, "cuda", base_bytes=0)


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(Setting("nf4", 2, 256, checkpointing=False), marks=pytest.mark.slow),
        pytest.param(Setting("none", 2, 256, checkpointing=True), marks=pytest.mark.slow),
    ],
)
def test_the_estimate_is_within_15_percent_of_what_is_measured(setting: Setting) -> None:
    measured = in_process(setting)["peak_memory"]
    assert foretold(setting) == pytest.approx(measured, rel=0.15)


def test_four_bits_a_weight_and_their_constants_are_as_the_paper_says() -> None:
    # Dettmers et al. 2023, section 3: 0.127 bits per weight instead of 0.5.
    bits = 8 * stored_bytes(2**26, 1, "nf4") / 2**26
    assert bits == pytest.approx(4.127, abs=0.001)
    assert stored_bytes(1000, 10, "int8") == 1040


def test_frozen_bytes_are_those_of_the_loaded_backbone(tiny: Path) -> None:
    spec = BackboneSpec(model=str(tiny), quantization="nf4", dtype="float32")
    loaded = load(resolve(spec), spec).model
    config = AutoConfig.from_pretrained(tiny)
    shaped = build_fake_model(config, AdapterSpec(), "nf4", torch.float32)
    held = sum(p.numel() * p.element_size() for p in loaded.parameters())
    held += sum(b.numel() * b.element_size() for b in loaded.buffers())
    constants = sum(
        m.weight.quant_state.absmax.nbytes + m.weight.quant_state.state2.absmax.nbytes
        for m in loaded.modules()
        if isinstance(m, Linear4bit)
    )
    assert shaped.quantized_bytes + shaped.dense_bytes == held + constants


def test_the_weights_of_an_8b_model_are_counted_without_having_them() -> None:
    shaped = build_fake_model(llama(layers=32), AdapterSpec(rank=16), "nf4", torch.bfloat16)
    assert shaped.quantized_bytes == pytest.approx(6.98e9 * 4.127 / 8, rel=0.01)
    assert shaped.dense_bytes == pytest.approx(2 * 2 * 128_256 * 4096, rel=0.01)
    # Rank 16 for each input and output of the seven matrices of a layer.
    widths = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14_336)
    assert shaped.adapter_parameters == 32 * 16 * widths
    assert shaped.checkpoint_parameters == pytest.approx(8.03e9, rel=0.01)


def test_weights_gradients_and_moments_are_counted_each_in_its_dtype() -> None:
    parts, whole = (of(recipe(quantization)).components for quantization in ("nf4", "none"))
    assert "quantized weights" not in whole
    assert whole["other frozen weights"] > 3 * parts["quantized weights"]
    assert parts["adapter gradients"] == parts["adapter (float32)"]
    assert parts["AdamW moments"] == 2 * parts["adapter gradients"]


def test_float32_logits_are_counted_as_many_at_a_time_as_the_device_converts() -> None:
    """Logits, their gradient, and on a GPU a chunk twice: as float32 and its softmax."""
    batch = MicroBatch(rows=1, length=2048, supervised=2048, masked=False)
    given = recipe("none"), LARGE, batch
    cpu, cuda = (estimate_memory(*given, device, 0) for device in get_args(Device))
    logits = 2 * 2048 * LARGE.vocab_size * torch.bfloat16.itemsize
    chunks = 2 * GPU_CHUNK * LARGE.vocab_size * torch.float32.itemsize
    assert cpu.components["logits"] == pytest.approx(logits, rel=0.001)
    assert cuda.components["logits"] == pytest.approx(logits + chunks, rel=0.001)


def test_inputs_of_lora_that_are_not_cast_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = MicroBatch(rows=1, length=1024, supervised=8, masked=False)
    found = of(recipe("none"), batch).components["activations"]
    monkeypatch.setattr(attach, "leave_out_input_casts", lambda _: None)
    assert found < 0.9 * of(recipe("none"), batch).components["activations"]


def test_the_state_of_an_optimizer_is_counted_as_it_stores_it(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(96, 64), torch.nn.Linear(64, 2))
    for optim in get_args(Optimizer):
        arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, optim=optim)
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        optimizer = kind(model.parameters(), **options)
        model(torch.randn(4, 96)).sum().backward()
        optimizer.step()
        # Lookup tables of 256 values are shared by all tensors.
        tensors, _ = split_state(optimizer.state_dict()["state"])
        held = sum(t.nbytes for name, t in tensors.items() if t.dim() and "qmap" not in name)
        assert state_bytes(optim, model.parameters()) == held, optim


def test_recomputing_activations_holds_far_fewer_of_them() -> None:
    kept, recomputed = (of(recipe(checkpointing=c)) for c in (False, True))
    assert recomputed.components["activations"] < 0.3 * kept.components["activations"]
    assert recomputed.total < kept.total


def test_the_logits_of_the_base_are_counted() -> None:
    plain, held = (
        of(recipe().model_copy(update={"retention": RetentionSpec.model_validate(methods)}))
        for methods in ({}, {"non_target_kl": {}})
    )
    logits = BATCH.supervised * LARGE.vocab_size * 4
    assert held.total - plain.total > logits


@pytest.mark.slow
def test_activations_grow_with_the_rows_and_eager_attention_with_the_square() -> None:
    one, four = (of(recipe(), BATCH.resized(rows, 512)) for rows in (2, 8))
    ratio = four.components["activations"] / one.components["activations"]
    assert ratio == pytest.approx(4, rel=0.05)

    def activations(attention: str, length: int) -> int:
        found = of(recipe(attention=attention), BATCH.resized(2, length))
        return found.components["activations"]

    assert activations("eager", 2048) > 5 * activations("eager", 512)
    for attention in ("auto", "sdpa", "flash_attention_2"):
        assert activations(attention, 2048) < 5 * activations(attention, 512)


def test_flash_attention_makes_no_mask() -> None:
    flash, sdpa = (of(recipe(attention=name)) for name in ("flash_attention_2", "sdpa"))
    assert sdpa.batch.masked
    assert not flash.batch.masked
    assert flash.total < sdpa.total


def test_varlen_makes_no_mask_for_a_pack() -> None:
    pack = MicroBatch(rows=1, length=64, supervised=32, masked=True)
    assert not of(recipe(attention="varlen"), pack).batch.masked


def test_dropout_and_a_higher_rank_are_counted() -> None:
    plain = of(recipe())
    changed = recipe().model_copy(update={"adapter": AdapterSpec(rank=64, dropout=0.1)})
    more = of(changed)
    assert more.components["adapter gradients"] == 4 * plain.components["adapter gradients"]
    assert more.components["activations"] > 1.1 * plain.components["activations"]


def test_the_largest_micro_batch_is_made_of_the_longest_examples() -> None:
    def made(length: int, supervised: int) -> Example:
        ids = tuple(range(length))
        return Example(ids, (-100,) * (length - supervised) + ids[length - supervised :])

    data = prepared([made(10, 2), made(30, 5), made(20, 7), made(30, 1)])

    def largest(rows: int, tokens: int | None = None, packing: bool = False) -> MicroBatch:
        return largest_micro_batch(data, MicroBatcher(4, rows, tokens, packing))

    batch = largest(rows=2)
    assert (batch.rows, batch.length, batch.supervised) == (2, 30, 6)
    assert not batch.masked, "rows of one length need no mask"
    assert largest(rows=3).masked
    assert largest(rows=4, tokens=60).rows == 2
    assert largest(rows=4, tokens=8).rows == 1
    packed = largest(rows=4, tokens=64, packing=True)
    assert (packed.rows, packed.length, packed.masked) == (1, 60, True)
    assert largest(rows=4, tokens=45, packing=True).length == 40, "a shorter one finds room"
    unpadded = largest_micro_batch(data, MicroBatcher(4, 3, None, packing=True, unpadded=True))
    assert (unpadded.rows, unpadded.length, unpadded.masked) == (3, 30, False)
    limited = largest_micro_batch(data, MicroBatcher(4, 4, 64, packing=True, unpadded=True))
    assert (limited.rows, limited.length) == (2, 30)


def test_a_misspelt_target_is_refused_without_weights() -> None:
    wrong = recipe().model_copy(update={"adapter": AdapterSpec(target_modules=["q_porj"])})
    with pytest.raises(AdapterError, match="no module is called q_porj"):
        of(wrong)


@pytest.mark.slow  # estimates many changes
def test_cards_that_fit_come_with_the_smallest_first() -> None:
    assert fitting_gpus(23_000 * 2**20)[:2] == ("A10G 24 GB", "L4 24 GB")
    assert "T4 16 GB" not in fitting_gpus(16_000_000_000 + 2**30)
    assert fitting_gpus(10**12) == ()


@pytest.mark.slow
def test_advice_is_the_smallest_change_that_fits(
    tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "LENGTH_DIVISORS", (1, 2))
    wanted = recipe("none", dtype="float32")
    batch = MicroBatch(rows=8, length=512, supervised=2048, masked=True)
    whole = of(wanted, batch, tiny_config).total

    def advised(memory: int) -> tuple[str, ...] | None:
        found = find_fitting_change(
            wanted, tiny_config, batch, MicroBatcher(16, 8), "cuda", 0, memory
        )
        assert found is None or found.estimate.total <= memory
        return found.assignments if found else None

    assert advised(whole) == ()
    assert advised(whole - 1) == ("training.micro_batch_size=4",)
    one = of(wanted, batch.resized(1, 512), tiny_config).total
    assert "training.gradient_checkpointing=true" in (advised(one - 1) or ())
    assert advised(1000) is None


@pytest.fixture
def by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the estimate by one byte per token of a forward pass."""

    def estimated(_recipe: Any, _config: Any, batch: MicroBatch, *_: Any) -> MemoryEstimate:
        return MemoryEstimate("cuda", batch, {}, batch.rows * batch.length)

    monkeypatch.setattr(gpus, "estimate_memory", estimated)


@pytest.mark.usefixtures("by_tokens")
@pytest.mark.parametrize(
    ("max_tokens_per_batch", "memory", "assignments"),
    [
        # The longest example of 512 tokens would fill a pack of that size.
        (None, 256, ("data.max_length=256",)),
        (1024, 512, ("training.max_tokens_per_batch=512",)),
        (1024, 256, ("data.max_length=256", "training.max_tokens_per_batch=256")),
    ],
)
def test_a_pack_gets_smaller_by_what_bounds_it(
    max_tokens_per_batch: int | None, memory: int, assignments: tuple[str, ...]
) -> None:
    wanted = recipe(max_length=512, packing=True)
    training = wanted.training.model_copy(update={"max_tokens_per_batch": max_tokens_per_batch})
    wanted = wanted.model_copy(update={"training": training})
    tokens = max_tokens_per_batch or 512
    batch = MicroBatch(rows=1, length=tokens, supervised=tokens, masked=True)
    batcher = MicroBatcher(8, 8, tokens, packing=True)
    found = find_fitting_change(wanted, LARGE, batch, batcher, "cuda", 0, memory)
    assert found is not None
    assert found.assignments == assignments


@pytest.mark.usefixtures("by_tokens")
def test_a_pack_that_only_its_examples_bound_is_advised_to_be_bounded() -> None:
    """`unpadded` on an attention that separates no examples by their lengths."""
    wanted = recipe(max_length=512)
    data = wanted.data.model_copy(update={"packing": "unpadded"})
    wanted = wanted.model_copy(update={"data": data})
    batcher = MicroBatcher.of(wanted, 1, torch.device("cpu"), "sdpa")
    assert (batcher.tokens, batcher.packing, batcher.unpadded) == (None, True, False)
    batch = MicroBatch(rows=1, length=4 * 512, supervised=4 * 512, masked=True)
    found = find_fitting_change(wanted, LARGE, batch, batcher, "cpu", 0, 2 * 512)
    assert found is not None
    assert found.assignments == ("training.max_tokens_per_batch=1024",)


@pytest.mark.usefixtures("by_tokens")
@pytest.mark.parametrize(
    ("max_tokens_per_batch", "memory", "assignments"),
    [
        # With six examples and a share of 16, 4 is the only divisor that fits.
        (None, 5 * 512, ("training.micro_batch_size=4",)),
        (None, 400, ("data.max_length=256", "training.micro_batch_size=1")),
        (6 * 512, 3 * 512, ("training.max_tokens_per_batch=1536",)),
        (6 * 512, 400, ("data.max_length=256", "training.max_tokens_per_batch=256")),
    ],
)
def test_only_rows_that_divide_the_share_are_advised(
    max_tokens_per_batch: int | None, memory: int, assignments: tuple[str, ...]
) -> None:
    batch = MicroBatch(rows=6, length=512, supervised=512, masked=True)
    batcher = MicroBatcher(16, 16, max_tokens_per_batch)
    wanted = recipe(checkpointing=True)
    found = find_fitting_change(wanted, LARGE, batch, batcher, "cuda", 0, memory)
    assert found is not None
    assert found.assignments == assignments


def test_an_estimate_is_shown_with_what_it_consists_of(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    show_estimate(of(recipe()), Console(width=120))
    shown = capsys.readouterr().out
    assert "quantized weights" in shown
    assert "RTX 4090 24 GB" in shown


@pytest.mark.parametrize(
    ("adapter", "is_advised"),
    [
        ({}, True),
        ({"options": {"init_lora_weights": "pissa"}}, True),
        ({"options": {"init_lora_weights": "corda"}}, False),
        ({"method": "loha"}, False),
    ],
)
def test_four_bits_are_advised_where_a_recipe_takes_them(
    monkeypatch: pytest.MonkeyPatch, adapter: dict[str, Any], is_advised: bool
) -> None:
    def estimated(recipe: Recipe, _config: Any, batch: MicroBatch, *_: Any) -> MemoryEstimate:
        return MemoryEstimate("cuda", batch, {}, 1 if recipe.backbone.quantization == "nf4" else 9)

    monkeypatch.setattr(gpus, "estimate_memory", estimated)
    plain = recipe(quantization="none")
    wanted = plain.model_copy(update={"adapter": AdapterSpec.model_validate(adapter)})
    found = find_fitting_change(wanted, LARGE, BATCH, MicroBatcher(2, 2), "cuda", 0, 5)
    assert (found is not None) is is_advised
