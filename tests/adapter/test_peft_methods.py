"""All methods of a recipe: trained, saved, reloaded in a new process, merged."""

import copy
import json
import re
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftType
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from lora_kit.adapter.attach import attach, coverage
from lora_kit.adapter.peft_methods import peft_configuration
from lora_kit.adapter.saved import save_adapter
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.merging.in_memory import merge_adapter
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.preflight.checks import run_checks
from lora_kit.preflight.context import PreflightContext
from lora_kit.preflight.fake_model import build_fake_model
from lora_kit.recipe.adapter import NOT_MERGED, NOT_SHAPED, REFUSED, AdapterSpec, PeftMethod
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.document import parse_document
from lora_kit.recipe.load import validate
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import AdapterError, MergeError, RecipeError
from lora_kit.runtime.launch import Launch
from tests.merging.test_methods import plan_of
from tests.plain_process import run_new

METHODS = (*typing.get_args(PeftMethod), "full", "last-1")
ON_FOUR_BITS = [m for m in METHODS if AdapterSpec(method=m).why_not_on("nf4") is None]
# Required options, and options reduced for the tiny model's layers of size 64.
OPTIONS = {
    "c3a": {"block_size": 32},
    "road": {"group_size": 32},
    "vblora": {"vector_length": 32},
    "waveft": {"n_frequency": 200},
    "trainable_tokens": {"token_indices": [11, 12]},
}
RANK_NAMES = {"shira": 4}
IDS = torch.randint(20, 4_000, (2, 16), generator=torch.Generator().manual_seed(0))
IDS[0, 3], IDS[1, 5] = 11, 12


def spec_of(method: str) -> AdapterSpec:
    return AdapterSpec.model_validate(
        {"method": method, "rank": RANK_NAMES.get(method), "options": OPTIONS.get(method, {})}
    )


@torch.no_grad()
def logits_of(model: torch.nn.Module) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(input_ids=IDS).logits
    return logits


def loss_of(logits: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def losses_of_steps(
    model: Any, ids: torch.Tensor, optimizer: torch.optim.Optimizer, steps: int = 3
) -> list[float]:
    """Return the loss before each of some steps of an optimizer."""
    losses = []
    for _ in range(steps):
        loss = loss_of(model(input_ids=ids).logits)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


@dataclass(frozen=True)
class Tried:
    """Logits before, during and after two training steps with a method.

    Attributes:
        base: logits of the base.
        before: logits with the new adapter.
        off: logits after training, with the adapter disabled.
        after: logits after training.
    """

    base: torch.Tensor
    before: torch.Tensor
    off: torch.Tensor
    after: torch.Tensor


def tried(backbone: Backbone, method: str, directory: Path) -> Tried:
    backbone = copy.deepcopy(backbone)
    base = logits_of(backbone.model)
    model = attach(backbone, spec_of(method), seed=0)
    before = logits_of(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    model.train()
    for _ in range(2):
        loss_of(model(input_ids=IDS).logits).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = logits_of(model)
    with adapter_disabled(model):
        off = logits_of(model)
    save_adapter(model, backbone, directory)
    return Tried(base, before, off, after)


def tiny_on(tiny: Path, quantization: str) -> Backbone:
    spec = BackboneSpec(model=str(tiny), quantization=quantization, dtype="float32")
    return load(resolve(spec), spec)


RELOAD = """
import copy, sys
from pathlib import Path
from safetensors.torch import save_file
from lora_kit.adapter.attach import attach_saved
from tests.adapter.test_peft_methods import logits_of, tiny_on
tiny, folder, quantization = sys.argv[1:]
backbone = tiny_on(Path(tiny), quantization)
result = {}
for adapter in sorted(Path(folder).glob("*/adapter_config.json")):
    result[adapter.parent.name] = logits_of(attach_saved(copy.deepcopy(backbone), adapter.parent))
save_file(result, Path(folder) / "reloaded.safetensors")
"""


@dataclass(frozen=True)
class All:
    """Results of all methods on one kind of weights, and their logits in a new process."""

    quantization: str
    folder: Path
    tried: dict[str, Tried]
    failed: dict[str, Exception]
    reloaded: dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=["none", pytest.param("nf4", marks=pytest.mark.slow)])
def every(
    request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> All:
    folder = tmp_path_factory.mktemp(request.param)
    backbone = tiny_on(tiny, request.param)
    done, failed = {}, {}
    for method in METHODS:
        try:
            done[method] = tried(backbone, method, folder / method)
        except (AdapterError, RuntimeError, TypeError) as error:
            failed[method] = error
    run_new(RELOAD, tiny, folder, request.param)
    return All(request.param, folder, done, failed, load_file(folder / "reloaded.safetensors"))


@pytest.mark.covers(*METHODS[:-1], "last-K", on=("none",), launcher="one process, CPU")
@pytest.mark.covers(*ON_FOUR_BITS, on=("nf4",), launcher="one process, CPU")
@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_a_new_process_reads_the_same_from_disk(
    every: All, method: str
) -> None:
    if spec_of(method).why_not_on(every.quantization):
        one = every.tried.get(method)
        # The refusal is justified: the method fails, or does not train.
        assert one is None or torch.equal(one.after, one.base)
        return
    one = every.tried[method]
    # Most methods initially equal the base; virtual tokens start at random.
    assert loss_of(one.after) < loss_of(one.before)
    assert not torch.equal(one.after, one.base)
    assert torch.equal(one.off, one.base), "disabling the adapter does not restore the base"
    assert torch.equal(every.reloaded[method], one.after)


@pytest.mark.covers("lora", on=("int8",), launcher="one process, CPU")
def test_lora_trains_on_eight_bits(tiny: Path, tmp_path: Path) -> None:
    one = tried(tiny_on(tiny, "int8"), "lora", tmp_path / "lora")
    assert loss_of(one.after) < loss_of(one.before)
    assert torch.equal(one.off, one.base)


@pytest.mark.parametrize("every", ["none"], indirect=True)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_merged_or_refused(every: All, method: str, tiny: Path) -> None:
    plan = plan_of(tiny, every.folder / method)
    if method in NOT_MERGED:
        with pytest.raises(MergeError):
            merge_adapter(plan, every.folder / f"merged-{method}")
        return
    merge_adapter(plan, every.folder / f"merged-{method}")
    merged = AutoModelForCausalLM.from_pretrained(every.folder / f"merged-{method}")
    torch.testing.assert_close(logits_of(merged), every.tried[method].after, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", sorted(set(METHODS) - NOT_SHAPED))
def test_a_method_is_estimated_from_shapes(tiny: Path, method: str) -> None:
    config = AutoConfig.from_pretrained(tiny)
    shaped = build_fake_model(config, spec_of(method), "none", torch.float32)
    attached = attach(tiny_on(tiny, "none"), spec_of(method), seed=0)
    assert shaped.adapter_parameters == coverage(attached).trainable_parameters


def test_all_methods_of_peft_are_supported_or_refused() -> None:
    assert {kind.value.lower() for kind in PeftType} == {*METHODS[:-2], *REFUSED}


def recipe_of(adapter: dict[str, Any], quantization: str = "none") -> Recipe:
    document = {
        "name": "x",
        "backbone": {"model": "smollm2-135m-instruct", "quantization": quantization},
        "adapter": adapter,
        "data": {"train": [{"source": "stdlib-docstrings"}]},
    }
    return validate(Recipe, parse_document(json.dumps(document), "x.yaml"))


@pytest.mark.parametrize(
    ("adapter", "quantization", "message"),
    [
        (
            {"method": "hra"},
            "nf4",
            "hra needs unquantized weights, and backbone.quantization is nf4",
        ),
        (
            {"method": "full"},
            "int8",
            "full trains the weights themselves, which quantization rounds",
        ),
        ({"method": "cpt"}, "none", "cpt has a loss of its own"),
        ({"method": "loar"}, "none", "use one of lora, "),
        ({"method": "last-0"}, "none", "adapter.method"),
        ({"method": "lora", "rank": 0}, "none", "adapter.rank"),
    ],
)
def test_an_impossible_method_is_refused_with_the_recipe(
    adapter: dict[str, Any], quantization: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        recipe_of(adapter, quantization)


@pytest.mark.parametrize("method", sorted(NOT_MERGED))
@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"evaluation": {"arms": ["base", "adapter", "merged"]}}, "evaluation.arms: "),
        ({"merge": {"dtype": "float32"}}, "merge: "),
    ],
)
def test_merging_an_unmergeable_method_is_refused_with_the_recipe(
    method: str, section: dict[str, Any], message: str
) -> None:
    plain = recipe_of({"method": method}).model_dump(mode="json")
    with pytest.raises(RecipeError, match=f"{message}{method} .*merged.* Fix: remove"):
        validate(Recipe, parse_document(json.dumps(plain | section), "x.yaml"))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"options": {"use_dorra": True}}, "Did you mean `use_dora`?"),
        ({"options": {"use_dora": "perhaps"}}, "adapter.options.use_dora"),
        ({"options": {"r": 4}}, "adapter.options.r: "),
        ({"options": {"init_lora_weights": "pizza"}}, "adapter.options.init_lora_weights"),
        (
            {"options": {"init_lora_weights": "eva", "eva_config": {"rhoo": 1}}},
            "adapter.options.eva_config.rhoo: unknown key. Fix: use one of adjust_scaling_factors",
        ),
        (
            {"options": {"layers_to_transform": [0]}},
            "adapter.options.layers_to_transform: needs a list of modules in "
            "adapter.target_modules (got all-linear)",
        ),
        ({"options": {"bias": "all"}}, "trains biases of the backbone in place"),
        ({"method": "adalora", "options": {"init_r": 4}}, "adapter.options.init_r"),
        ({"method": "ia3", "rank": 4}, "adapter.rank: ia3 has none"),
        ({"method": "full", "rank": 4}, "adapter.rank: full has none"),
        ({"method": "last-3"}, "more blocks than the backbone has (got 3 of 2)"),
        ({"method": "c3a"}, "factor of the input size"),
    ],
)
def test_options_that_a_method_does_not_have_are_refused_when_it_is_attached(
    tiny_backbone: Backbone, adapter: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdapterError, match=re.escape(message)):
        attach(tiny_backbone, AdapterSpec.model_validate(adapter), seed=0)


def test_variants_of_lora_are_options(tiny_backbone: Backbone) -> None:
    options = {"use_rslora": True, "use_dora": True, "rank_pattern": {"v_proj": 2}}
    config = peft_configuration(AdapterSpec(rank=4, options=options), tiny_backbone.model)
    assert {name: getattr(config, name) for name in options} == options
    assert (config.r, config.lora_alpha) == (4, 32)


def test_options_are_converted_to_the_types_that_peft_declares(tiny_backbone: Backbone) -> None:
    """YAML reads 1e-3 as a string, and "off" is a true string in Python."""
    options = {"use_dora": "off", "alpha_pattern": {"v_proj": "1e1"}}
    config = peft_configuration(AdapterSpec(options=options), tiny_backbone.model)
    assert config.use_dora is False
    spec = AdapterSpec.model_validate({"method": "adalora", "options": {"orth_reg_weight": "1e-3"}})
    assert peft_configuration(spec, tiny_backbone.model).orth_reg_weight == 1e-3


@pytest.mark.parametrize("method", ["full", "last-1", "ln_tuning"])
def test_float32_copies_of_layers_are_refused_in_half_precision(tiny: Path, method: str) -> None:
    recipe = recipe_of({"method": method})
    backbone = tiny_on(tiny, "none")
    run_checks(PreflightContext(recipe, Launch(), backbone=backbone))
    half = replace(backbone, spec=backbone.spec.model_copy(update={"dtype": "bfloat16"}))
    with pytest.raises(AdapterError, match=r"kept in float32, .*got backbone\.dtype: bfloat16"):
        run_checks(PreflightContext(recipe, Launch(), backbone=half))


def test_only_the_last_block_is_trained(tiny_backbone: Backbone) -> None:
    model = attach(tiny_backbone, spec_of("last-1"), seed=0)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 7 + 2 + 1
    assert all(".layers.1." in name or ".model.norm." in name for name in trained)
