"""Packed rows whose examples are separated by their lengths, against sdpa with a mask."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from lora_kit.backbone import varlen
from lora_kit.backbone.attention import (
    FLASH,
    VARLEN,
    choose_attention,
    expected_attention,
    lengths_arguments,
)
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import load
from lora_kit.backbone.varlen import _by_kernel, _one_by_one, register_varlen
from lora_kit.backbone.varlen_support import AMPERE, varlen_problem
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.modeling.likelihood import supervised_nll
from lora_kit.modeling.model_inputs import collate_for, pack_examples, pad_examples
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import BackboneError
from tests.two_stacks import WRITERS

GPU, CPU = torch.device("cuda"), torch.device("cpu")
SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "pad_token_id": 0,
}
GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 64, "n_positions": 64}
# Grouped heads, windows in all or some layers, learned positions, experts, norms of the heads.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "mistral": SHAPE | {"sliding_window": 4},
    "qwen2": SHAPE | {"num_key_value_heads": 4},
    "qwen3": SHAPE,
    "gemma3_text": SHAPE | {"sliding_window": 4, "layer_types": None, "num_hidden_layers": 6},
    "gpt2": GPT2 | {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "phi3": SHAPE,
    "mixtral": SHAPE | {"num_local_experts": 2},
    "olmo2": SHAPE,
}
LENGTHS = (9, 1, 5, 14)


def built(family: str, attention: str = "sdpa") -> Any:
    register_varlen()
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family])
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def adapted(family: str) -> Iterator[Any]:
    """Yield the same model with an adapter, with a mask and with lengths."""
    for attention in ("sdpa", VARLEN):
        model = built(family, attention)
        torch.manual_seed(1)
        model = get_peft_model(
            model, LoraConfig(target_modules="all-linear", init_lora_weights=False)
        )
        yield model.train()


@pytest.fixture
def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in LENGTHS:
        ids = tuple(torch.randint(3, 64, (length,), generator=generator).tolist())
        found.append(Example(ids, (IGNORE_INDEX, *ids[1:])))
    return found


def losses_and_gradients(model: Any, batch: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    nll, rows = supervised_nll(model, batch)
    # The first token of an example has no label.
    assert rows.bincount(minlength=len(LENGTHS)).tolist() == [length - 1 for length in LENGTHS]
    nll.square().sum().backward()
    return nll.detach(), [p.grad for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize(
    ("family", "checkpointing"),
    [*((family, False) for family in FAMILIES), ("llama", True), ("mistral", True)],
)
def test_losses_and_gradients_are_those_with_a_mask(
    family: str, checkpointing: bool, examples: list[Example]
) -> None:
    masked, by_length = adapted(family)
    if checkpointing:
        by_length.gradient_checkpointing_enable({"use_reentrant": False})
        by_length.enable_input_require_grads()
    packed = pack_examples(examples)
    expected, gradients = losses_and_gradients(masked, packed)
    padded, _ = losses_and_gradients(copy.deepcopy(masked), pad_examples(examples, 0))
    found, ours = losses_and_gradients(by_length, packed)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, padded, rtol=1e-4, atol=1e-5)
    assert any(bool(gradient.any()) for gradient in ours)
    torch.testing.assert_close(ours, gradients, rtol=1e-3, atol=1e-4)


def test_no_mask_is_made_and_every_layer_gets_the_lengths(
    examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built("mistral", VARLEN)
    seen = []
    layers = [layer.self_attn for layer in model.model.layers]
    for layer in layers:
        layer.register_forward_pre_hook(
            lambda _module, _inputs, given: seen.append(given), with_kwargs=True
        )
    supervised_nll(model, pack_examples(examples))
    assert len(seen) == len(layers)
    for given in seen:
        assert given["attention_mask"].numel() == 1
        assert given["cu_seq_lens_q"].tolist() == [0, 9, 10, 15, 29]
        assert given["max_length_k"] == max(LENGTHS)
    assert lengths_arguments(built("mistral"), pack_examples(examples)) == {}


def test_losses_outside_of_steps_are_packed_where_attention_reads_lengths(
    examples: list[Example],
) -> None:
    assert "lengths" in collate_for(built("llama", VARLEN), examples, 0)
    assert "lengths" not in collate_for(built("llama"), examples, 0)
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert "lengths" not in collate_for(
        get_peft_model(built("llama", VARLEN), prompts), examples, 0
    )


def test_a_pass_without_lengths_is_that_of_sdpa(examples: list[Example]) -> None:
    with torch.no_grad():
        batch = pad_examples(examples, 0)
        one, other = (supervised_nll(built("llama", a).eval(), batch)[0] for a in ("sdpa", VARLEN))
        ids = torch.tensor([examples[0].input_ids])
        texts = [
            built("llama", attention).generate(ids, max_new_tokens=5, do_sample=False).tolist()
            for attention in ("sdpa", VARLEN)
        ]
    assert torch.equal(one, other)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_varlen_computes_are_known_without_weights(family: str) -> None:
    config = AutoConfig.for_model(family, **FAMILIES[family])
    state = torch.random.get_rng_state()
    assert varlen_problem(config, torch.bfloat16, AMPERE) == ""
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("family", "changes", "part"),
    [
        ("gemma2", {}, "softcap"),
        ("gpt_oss", {"num_local_experts": 4}, "s_aux"),
        ("gpt2", {**GPT2, "attn_pdrop": 0.1}, "dropout"),
        ("falcon", {}, "cannot be tried"),
        ("stablelm", {}, "does not support flash attention"),
        ("llama4_text", {"num_local_experts": 2}, "layers of kind chunked_attention"),
        ("mpt", {"n_layers": 2}, "does not support flash attention"),
        ("t5", {"num_layers": 2}, "encoder-decoder"),
        ("llama", {"head_dim": 12}, "heads of size 12"),
        ("qwen3_next", {}, "layers of kind linear_attention"),
        ("falcon_h1", {}, "layers of kind hybrid"),
    ],
)
def test_other_models_are_told_apart_with_the_reason(
    family: str, changes: dict[str, Any], part: str
) -> None:
    small = {name: SHAPE[name] for name in ("num_hidden_layers", "hidden_size", "vocab_size")}
    config = AutoConfig.for_model(family, **({} if "n_layer" in changes else small) | changes)
    assert part in varlen_problem(config, torch.bfloat16, AMPERE)


def llama(**changes: Any) -> Any:
    return AutoConfig.for_model("llama", **SHAPE | changes)


def test_kernels_limit_capability_dtype_and_heads() -> None:
    assert "8.0 or higher, got (7, 5)" in varlen_problem(llama(), torch.float16, (7, 5))
    assert "float32" in varlen_problem(llama(), torch.float32, (9, 0))
    large = llama(head_dim=256)
    assert varlen_problem(large, torch.bfloat16, (9, 0)) == ""
    assert "heads of size 256" in varlen_problem(large, torch.bfloat16, (8, 9))
    assert varlen_problem(llama(head_dim=12), torch.float32, None) == ""


def spec(attention: str = "auto", dtype: str = "auto") -> BackboneSpec:
    return BackboneSpec.model_validate({"model": "m", "attention": attention, "dtype": dtype})


def test_auto_is_varlen_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    assert choose_attention(spec(), llama(), CPU, torch.bfloat16) == ("auto", "")
    assert choose_attention(spec(), llama(), GPU, torch.bfloat16) == (VARLEN, "")
    assert choose_attention(spec("sdpa"), llama(), GPU, torch.bfloat16) == ("sdpa", "")
    chosen, problem = choose_attention(spec(), llama(), GPU, torch.float32)
    assert chosen == "auto"
    assert "float32" in problem
    with pytest.raises(BackboneError, match=r"^backbone.attention: varlen cannot .* \(float32"):
        choose_attention(spec(VARLEN), llama(), GPU, torch.float32)


def test_the_attention_of_another_machine_is_foreseen() -> None:
    assert expected_attention(spec(), llama(), "cpu") == "auto"
    assert expected_attention(spec(), llama(), "cuda") == VARLEN
    assert expected_attention(spec("eager"), llama(), "cuda") == "eager"
    assert expected_attention(spec(dtype="float32"), llama(), "cuda") == "auto"


def test_a_layer_that_asks_for_more_raises_instead_of_a_wrong_answer(
    examples: list[Example],
) -> None:
    config = AutoConfig.for_model("gpt2", **FAMILIES["gpt2"] | {"attn_pdrop": 0.5})
    register_varlen()
    model = AutoModelForCausalLM.from_config(config, attn_implementation=VARLEN)
    supervised_nll(model.eval(), pack_examples(examples))
    with pytest.raises(BackboneError, match=r"cannot compute a layer of this model \(dropout\)"):
        supervised_nll(model.train(), pack_examples(examples))


def test_an_older_kernel_gets_as_many_heads_of_keys_as_of_queries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel of torch 2.11, the oldest that is allowed, knows no groups of heads."""

    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        _cu_seq_k: torch.Tensor,
        max_q: int,
        _max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> torch.Tensor:
        assert query.shape == key.shape == value.shape
        assert window_size == (-1, 0)
        return _one_by_one(query, key, value, cu_seq_q, max_q, scale, None)

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(varlen, "HAS_GROUPS", False)
    torch.manual_seed(0)
    query, key, value = (torch.randn(sum(LENGTHS), heads, 8) for heads in (4, 2, 2))
    starts = torch.tensor([0, 9, 10, 15, 29], dtype=torch.int32)
    packed = (query, key, value, starts, max(LENGTHS), None, None)
    assert torch.allclose(_by_kernel(*packed), _one_by_one(*packed), atol=1e-6)


@pytest.mark.parametrize("attention", FLASH)
def test_flash_attention_is_told_the_lengths_of_a_pack(attention: str) -> None:
    model = built("mistral")
    model.config._attn_implementation = attention
    pack = pack_examples([Example((1, 2, 3), (1, 2, 3)), Example((4, 5), (4, 5))])
    told = lengths_arguments(model, pack)
    assert told["cu_seq_lens_q"].tolist() == told["cu_seq_lens_k"].tolist() == [0, 3, 5]
    assert told["max_length_q"] == told["max_length_k"] == 3
    # transformers makes no mask for it, and none is handed over in its place.
    assert "attention_mask" not in told


def test_an_encoder_decoder_is_padded_whatever_its_attention(tmp_path: Path) -> None:
    spec = BackboneSpec(model=str(WRITERS["t5"](tmp_path / "t5")), quantization="none")
    backbone = load(resolve(spec), spec)
    backbone.model.config._attn_implementation = FLASH[0]
    backbone = replace(backbone, spec=backbone.spec.model_copy(update={"attention": FLASH[0]}))
    assert backbone.packing_attention == ""
    examples = [Example((1, 2, 3), (-100, 2, 3))]
    assert "lengths" not in collate_for(backbone.model, examples, 0)
