"""Reduction of intruder dimensions: PEFT's on dense layers, the same on all others."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.intruders import reduce_intruder_dimension
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lora_kit.adapter.attach import attach_saved, load_adapter, wrap_with_adapter
from lora_kit.adapter.saved import save_adapter
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.rescaling.intruders import IntruderSearch, ReducedAdapter, reduce_intruders
from lora_kit.rescaling.scale import AdapterScale, scaled_adapter
from lora_kit.runtime.errors import AdapterError
from tests.adapter.test_peft_methods import tiny_on

FACTORS = (0.75, 0.0)
SEARCH = IntruderSearch(FACTORS)
# Each column of a factor is this strong, so that updates have larger singular values than weights.
STRENGTH = 0.3
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj", "k_proj", "gate_proj", "down_proj"]},
    "rslora": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {"v_proj": 12},
    },
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def learned(model: Any) -> Any:
    """The model with updates of random directions; those of `v_proj` are too weak to intrude."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            strength = 1e-4 if "v_proj" in name and "_B" in name else STRENGTH
            parameter.data = torch.randn_like(parameter) * strength
    return model


def adapted(base: nn.Module, **options: Any) -> Any:
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, **options})
    return learned(get_peft_model(base, config))


def updates(model: Any, adapter: str = "default") -> dict[str, torch.Tensor]:
    return {
        name: layer.get_delta_weight(adapter).detach()
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def reduced_updates(model: Any, reduced: ReducedAdapter, factor: float) -> dict[str, torch.Tensor]:
    with scaled_adapter(model, AdapterScale.uniform(1.0, factor), reduced.parameters):
        return updates(model)


@pytest.mark.parametrize("case", OPTIONS)
def test_dense_layers_get_the_update_that_peft_gives_them(case: str) -> None:
    model = adapted(llama(), **OPTIONS[case])
    reduced = reduce_intruders(model, SEARCH)
    trained = updates(model)
    for factor in FACTORS:
        lines: list[str] = []
        mitigated = copy.deepcopy(model)
        reduce_intruder_dimension(mitigated, mitigation_lambda=factor, logging_sink=lines.append)
        ours, peft = reduced_updates(model, reduced, factor), updates(mitigated, "intruder_reduced")
        for name, update in ours.items():
            # PEFT gives an embedding the factors of its transpose.
            expected = peft[name].T if "embed_tokens" in name else peft[name]
            torch.testing.assert_close(update, expected, rtol=1e-4, atol=1e-4)
            assert torch.equal(update, trained[name]) == (name not in reduced.intruders)
        counted = [line.split(": Intruders: ") for line in lines if "Intruders: " in line]
        assert reduced.intruders == {name: int(count) for name, count in counted}
    assert sum(reduced.intruders.values()) >= 4
    assert reduced.searched == len(trained)
    assert "v_proj" not in str(reduced.intruders)


def peft_update(weight: torch.Tensor, layer: Any, factor: float) -> torch.Tensor:
    """PEFT's update of a dense layer with this weight, (out, in), and the layer's factors."""
    dense = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    dense[0].weight.data = weight.clone()
    twin: Any = get_peft_model(dense, LoraConfig(r=4, lora_alpha=8, target_modules=["0"]))
    (own,) = [one for one in twin.modules() if isinstance(one, LoraLayer)]
    for factors in ("lora_A", "lora_B"):
        getattr(own, factors)["default"].weight.data = getattr(layer, factors)[
            "default"
        ].weight.data
    reduce_intruder_dimension(twin, mitigation_lambda=factor, logging_sink=None)
    update: torch.Tensor = own.get_delta_weight("intruder_reduced")
    return update.detach()


def stored_weight(base: Any) -> torch.Tensor:
    """The weight that a layer multiplies by, (out, in), from its stored bytes."""
    if type(base).__name__ == "Conv1D":
        return base.weight.detach().T  # type: ignore[no-any-return]
    if type(base.weight).__name__ == "Params4bit":
        return dequantize_4bit(base.weight.data, base.weight.quant_state).float()  # type: ignore[no-any-return]
    scale = base.state.SCB if base.weight.SCB is None else base.weight.SCB
    return base.weight.data.float() * scale[:, None] / 127  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["conv1d", "nf4", "int8"])
def test_other_layers_get_the_update_of_a_dense_layer_with_the_weight_they_multiply_by(
    tiny: Path, kind: str
) -> None:
    if kind == "conv1d":
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)
        model = adapted(
            GPT2LMHeadModel(config), target_modules=["c_attn", "c_fc"], fan_in_fan_out=True
        )
    else:
        model = adapted(tiny_on(tiny, kind).model, target_modules=["k_proj", "down_proj"])
    layers = {name: one for name, one in model.named_modules() if isinstance(one, LoraLayer)}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    reduced = reduce_intruders(model, SEARCH)
    assert reduced.intruders.keys() == layers.keys()
    for factor in FACTORS:
        for name, update in reduced_updates(model, reduced, factor).items():
            layer: Any = layers[name]
            ours = update.T if kind == "conv1d" else update
            expected = peft_update(stored_weight(layer.get_base_layer()), layer, factor)
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4, msg=name)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_the_written_adapter_is_plain_lora_of_the_same_ranks(tiny: Path, tmp_path: Path) -> None:
    backbone = tiny_on(tiny, "none")
    save_adapter(
        learned(wrap_with_adapter(backbone.model, AdapterSpec(rank=4, alpha=8))),
        backbone,
        tmp_path / "trained",
    )
    model = attach_saved(tiny_on(tiny, "none"), tmp_path / "trained")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    reduced = reduce_intruders(model, SEARCH)
    scale = AdapterScale.uniform(0.5, 0.0)
    with torch.inference_mode(), scaled_adapter(model, scale, reduced.parameters):
        measured = updates(model)
        save_adapter(model, backbone, tmp_path / "written")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    whole = reduced_updates(model, reduced, 0.0)
    reloaded = updates(load_adapter(tiny_on(tiny, "none").model, "tiny", tmp_path / "written"))
    for name, update in reloaded.items():
        assert torch.equal(update, measured[name]), name
        torch.testing.assert_close(update, 0.5 * whole[name])
    trained, written = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("trained", "written")
    )
    assert {n: (t.shape, t.dtype) for n, t in trained.items()} == {
        n: (t.shape, t.dtype) for n, t in written.items()
    }
    configs = [
        LoraConfig.from_pretrained(str(tmp_path / name)).to_dict()
        for name in ("trained", "written")
    ]
    assert configs[0] == configs[1]


def test_ranks_above_that_of_the_matrix_are_kept() -> None:
    """A row of zeros more, so that the shapes are those of the configuration."""
    model = adapted(llama(), target_modules=["k_proj"], r=40)
    reduced = reduce_intruders(model, SEARCH)
    (changed,) = {
        tuple(sorted(tuple(v.shape) for v in one.values())) for one in reduced.parameters.values()
    }
    assert changed == ((16, 40), (40, 32))
    (weight,) = updates(model).values()
    (update,) = reduced_updates(model, reduced, 0.0).values()
    base = (
        next(one for one in model.modules() if isinstance(one, LoraLayer)).get_base_layer().weight
    )
    intruders = weight + base - (update + base)
    assert torch.linalg.matrix_rank(intruders, atol=1e-4) == sum(reduced.intruders.values())


def test_layers_whose_weight_is_no_matrix_are_refused() -> None:
    model = adapted(nn.Sequential(nn.Conv2d(4, 4, 3)), target_modules=["0"])
    with pytest.raises(AdapterError, match=r"--intruders: needs layers .* \(got .*0: Conv2d\)"):
        reduce_intruders(model, SEARCH)


def test_a_scale_whose_reduction_was_not_computed_is_an_error() -> None:
    model = adapted(llama(), target_modules=["q_proj"])
    with pytest.raises(KeyError), scaled_adapter(model, AdapterScale.uniform(1.0, 0.25)):
        raise AssertionError("the factor was ignored")
