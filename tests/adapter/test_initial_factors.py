"""LoRA's initialisations: base unchanged, initial outputs as specified, readable by plain PEFT."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from lora_kit.adapter.attach import attach, coverage, wrap_with_adapter
from lora_kit.adapter.initial_factors import InitialRows, initialise
from lora_kit.adapter.saved import save_adapter
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.backbone.load import Backbone, load
from lora_kit.data.supervision import Example
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.pipeline import merge, train
from lora_kit.preflight.checks import run_checks
from lora_kit.preflight.context import PreflightContext
from lora_kit.preflight.method_checks import refuse_unavailable_initialisation
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.initialisations import SUBTRACTED
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import AdapterError, MergeError
from lora_kit.runtime.launch import Launch
from tests.adapter.test_peft_methods import (
    logits_of,
    loss_of,
    losses_of_steps,
    recipe_of,
    tiny_on,
)
from tests.plain_process import run_plain

IDS = torch.randint(20, 4_000, (2, 16), generator=torch.Generator().manual_seed(0))
STARTS = ("pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "eva")


def rows(number: int = 24, length: int = 24) -> list[Example]:
    ids = torch.randint(
        20, 4_000, (number, length), generator=torch.Generator().manual_seed(1)
    ).tolist()
    # EVA uses the 16 supervised tokens.
    return [
        Example(tuple(one), (*[-100] * (length - 16), *one[-16:]), False, f"row {n}", str(n))
        for n, one in enumerate(ids)
    ]


def spec_of(start: str, **options: Any) -> AdapterSpec:
    return AdapterSpec(rank=4, alpha=8.0, options={"init_lora_weights": start, **options})


def initialised(backbone: Backbone, spec: AdapterSpec, seed: int = 0) -> PeftModel:
    model = attach(backbone, spec, seed)
    initialise(model, backbone, spec, InitialRows(rows()), seed)
    return model


def layers_of(model: PeftModel) -> dict[str, LoraLayer]:
    return {name: one for name, one in model.named_modules() if isinstance(one, LoraLayer)}


@pytest.mark.parametrize("start", STARTS)
def test_the_model_initially_equals_the_base_which_training_does_not_change(
    tiny_backbone: Backbone, start: str
) -> None:
    base = logits_of(tiny_backbone.model)
    before = copy.deepcopy(tiny_backbone.model.state_dict())
    model = initialised(tiny_backbone, spec_of(start))
    torch.testing.assert_close(logits_of(model), base, rtol=1e-4, atol=1e-4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = losses_of_steps(model, IDS, optimizer)
    assert losses[-1] < losses[0]
    with adapter_disabled(model):
        assert torch.equal(logits_of(model), base)
    after = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): value
        for name, value in model.state_dict().items()
        if "lora_" not in name
    }
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("start", ["pissa", "olora", "corda", "lora_ga"])
def test_half_of_each_factor_is_pefts_initialisation_and_the_other_half_is_frozen(
    tiny_backbone: Backbone, start: str
) -> None:
    assert start in SUBTRACTED
    weights = {
        name: module.weight.detach().clone()
        for name, module in tiny_backbone.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    model = initialised(tiny_backbone, spec_of(start))
    ends = sum(out + inputs for out, inputs in (weight.shape for weight in weights.values()))
    head = sum(tiny_backbone.model.get_output_embeddings().weight.shape)
    assert coverage(model, spec_of(start)).trainable_parameters == 4 * (ends - head)
    name, layer = next(iter(layers_of(model).items()))
    factors: Any = layer
    a, b = factors.lora_A["default"].weight, factors.lora_B["default"].weight
    assert a.shape[0] == b.shape[1] == 8
    assert torch.equal(a[:4], a[4:])
    assert torch.equal(b[:, :4], -b[:, 4:])
    if start == "pissa":
        # The best approximation of the weight of that rank (Eckart and Young 1936).
        weight = weights[name.removeprefix("base_model.model.")]
        left, sizes, right = torch.linalg.svd(weight)
        best = left[:, :4] * sizes[:4] @ right[:4]
        torch.testing.assert_close(layer.scaling["default"] * b[:, :4] @ a[:4], best)
    frozen = a[4:].detach().clone(), b[:, 4:].detach().clone()
    loss_of(model(input_ids=IDS).logits).backward()
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad[:4].any()
    assert b.grad[:, :4].any()
    torch.optim.AdamW([a, b], lr=1e-2, weight_decay=0).step()
    assert torch.equal(a[4:], frozen[0])
    assert torch.equal(b[:, 4:], frozen[1])
    assert not torch.equal(a[:4], frozen[0])


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}])
def test_variants_of_lora_initially_equal_the_base(
    tiny_backbone: Backbone, options: dict[str, bool]
) -> None:
    base = logits_of(tiny_backbone.model)
    model = initialised(tiny_backbone, spec_of("pissa", **options))
    torch.testing.assert_close(logits_of(model), base, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", STARTS)
def test_the_same_seed_gives_the_same_factors(tiny_backbone: Backbone, start: str) -> None:
    first = initialised(copy.deepcopy(tiny_backbone), spec_of(start)).state_dict()
    second = initialised(copy.deepcopy(tiny_backbone), spec_of(start)).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_eva_distributes_ranks_by_explained_variance(tiny_backbone: Backbone) -> None:
    model = initialised(tiny_backbone, spec_of("eva"))
    ranks = [layer.r["default"] for layer in layers_of(model).values()]
    assert len(set(ranks)) > 1
    assert sum(ranks) == 14 * 4
    config = model.peft_config["default"]
    assert (config.init_lora_weights, config.eva_config) == (True, None)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_evas_redistributed_ranks_are_in_float32(tiny: Path, quantization: str) -> None:
    spec = BackboneSpec(model=str(tiny), quantization=quantization, dtype="bfloat16")
    model = initialised(load(resolve(spec), spec), spec_of("eva"))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}


def test_eva_that_does_not_converge_is_stopped(tiny_backbone: Backbone) -> None:
    spec = spec_of("eva", eva_config={"tau": 1.0})
    model = attach(tiny_backbone, spec, 0)
    with pytest.raises(AdapterError, match="did not converge in 20 passes over 8 rows"):
        initialise(model, tiny_backbone, spec, InitialRows(rows(8)), 0)


def test_loftq_approximates_the_unquantized_weights(tiny: Path) -> None:
    backbone = tiny_on(tiny, "nf4")
    exact = logits_of(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32))
    quantized = logits_of(backbone.model)
    spec = AdapterSpec(rank=32, alpha=64.0, options={"init_lora_weights": "loftq"})
    model = attach(backbone, spec, 0)
    initialise(model, backbone, spec, InitialRows(()), 0)
    ours = (logits_of(model) - exact).abs().mean()
    assert ours < 0.7 * (quantized - exact).abs().mean()
    with adapter_disabled(model):
        assert torch.equal(logits_of(model), quantized)


def test_loftq_supports_transposed_weights(tmp_path: Path, tokenizer: Any) -> None:
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = tiny_on(tmp_path, "nf4")
    quantized = logits_of(backbone.model)
    exact = logits_of(GPT2LMHeadModel.from_pretrained(tmp_path))
    spec = AdapterSpec(rank=48, alpha=96.0, options={"init_lora_weights": "loftq"})
    model = attach(backbone, spec, 0)
    initialise(model, backbone, spec, InitialRows(()), 0)
    ours = (logits_of(model) - exact).abs().mean()
    assert ours < 0.7 * (quantized - exact).abs().mean()


def test_loftq_supports_a_classifier(tmp_path: Path, tokenizer: Any) -> None:
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=64, n_layers=1, n_heads=2)
    DistilBertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    requested = BackboneSpec(model=str(tmp_path), quantization="nf4", dtype="float32")
    backbone = load(resolve(requested), requested, HeadOutputs("classification", ("a", "b")))
    model = initialised(backbone, spec_of("loftq"))
    assert all(one.lora_B["default"].weight.any() for one in layers_of(model).values())


def test_pissa_initially_equals_a_quantized_base(tiny: Path) -> None:
    backbone = tiny_on(tiny, "nf4")
    base = logits_of(backbone.model)
    torch.testing.assert_close(
        logits_of(initialised(backbone, spec_of("pissa"))), base, rtol=1e-3, atol=1e-3
    )


PLAIN = """
import sys, torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
tiny, adapter, output = sys.argv[1:]
base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
ids = torch.randint(20, 4_000, (2, 16), generator=torch.Generator().manual_seed(0))
ids[0, 3], ids[1, 5] = 11, 12
with torch.no_grad():
    model = PeftModel.from_pretrained(base, adapter).eval()
    save_file({"logits": model(input_ids=ids).logits}, output)
"""


@pytest.mark.parametrize("start", ["pissa", "eva"])
def test_plain_peft_computes_the_same_logits_in_a_new_process(
    tiny: Path, tiny_backbone: Backbone, tmp_path: Path, start: str
) -> None:
    model = initialised(tiny_backbone, spec_of(start))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    loss_of(model(input_ids=IDS).logits).backward()
    optimizer.step()
    expected = logits_of(model)
    save_adapter(model, tiny_backbone, tmp_path / "adapter")
    run_plain(PLAIN, tiny, tmp_path / "adapter", tmp_path / "out.safetensors")
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors")["logits"], expected)


@pytest.mark.parametrize(
    ("start", "rank", "most"),
    [("pissa", 40, 32), ("corda", 40, 32), ("lora_ga", 20, 16), ("loftq", 40, 32), ("eva", 40, 64)],
)
def test_a_rank_above_a_layers_directions_is_refused(
    tiny: Path, start: str, rank: int, most: int
) -> None:
    backbone = tiny_on(tiny, "nf4" if start == "loftq" else "none")
    spec = AdapterSpec(rank=rank, options={"init_lora_weights": start})
    with pytest.raises(AdapterError, match=f"no more than {most} directions"):
        initialised(backbone, spec)


@pytest.mark.parametrize(
    ("start", "rank", "possible"),
    [("pissa", 40, 32), ("lora_ga", 20, 16), ("loftq", 49, 32), ("eva", 40, 32)],
)
def test_a_rank_above_a_layers_directions_is_refused_before_training(
    tiny: Path, start: str, rank: int, possible: int
) -> None:
    quantization = "nf4" if start == "loftq" else "none"
    options = {"init_lora_weights": start}
    several = {}
    for each in (rank, possible):
        adapter = {"rank": each, "options": options}
        recipe = recipe_of(adapter, quantization)
        backbone = tiny_on(tiny, quantization)
        model = attach(backbone, recipe.adapter, 0)
        several[each] = PreflightContext(recipe, Launch(), backbone=backbone, model=model)
    with pytest.raises(AdapterError, match=rf"with {start}\. Fix: lower it to {possible}$"):
        run_checks(several[rank])
    run_checks(several[possible])


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2))


@pytest.mark.parametrize(
    ("targets", "advice"),
    [
        (
            ["c_attn"],
            "leave out adapter.options.init_lora_weights, since the adapter covers no linear layer",
        ),
        (
            ["c_attn", "lm_head"],
            "name only linear layers in adapter.target_modules, such as [lm_head]",
        ),
    ],
)
def test_layers_other_than_linear_are_refused_before_training(
    targets: list[str], advice: str
) -> None:
    recipe = recipe_of({"target_modules": targets, "options": {"init_lora_weights": "pissa"}})
    with pytest.raises(AdapterError, match=rf"c_attn: Conv1D\). Fix: {re.escape(advice)}"):
        refuse_unavailable_initialisation(
            PreflightContext(recipe, Launch(), model=wrap_with_adapter(gpt2(), recipe.adapter))
        )


@pytest.mark.parametrize("start", ["corda", "eva"])
def test_initialisation_from_activations_of_the_blocks_refuses_the_head(
    tiny_backbone: Backbone, start: str
) -> None:
    options = {"init_lora_weights": start}
    spec = AdapterSpec(rank=4, target_modules=["q_proj", "lm_head"], options=options)
    with pytest.raises(AdapterError, match=r"lm_head is outside of them\. Fix: leave it out"):
        initialised(tiny_backbone, spec)


def test_loftq_is_not_merged_into_unquantized_weights(tiny_recipe: Recipe, tmp_path: Path) -> None:
    document = tiny_recipe.model_dump(mode="json")
    document["backbone"]["quantization"] = "nf4"
    document["adapter"] |= {"rank": 4, "options": {"init_lora_weights": "loftq"}}
    document["data"]["train"][0]["limit"] = 4
    trained = train(Recipe.model_validate(document), tmp_path / "run")
    with pytest.raises(MergeError, match=r"merge\.base: .* loftq holds the quantization error"):
        merge(trained.session, base="original")
