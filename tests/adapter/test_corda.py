"""CorDA's knowledge-preserving mode: the directions that the base's texts use least."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_kit import pipeline
from lora_kit.adapter.attach import attach
from lora_kit.adapter.initial_factors import InitialRows, initialise
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.data.supervision import Example
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.preflight.context import PreflightContext
from lora_kit.preflight.method_checks import warn_of_few_corda_texts
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import CordaSpec
from lora_kit.runtime.errors import RecipeError
from lora_kit.runtime.launch import Launch
from lora_kit.training.retention.texts import RetentionTexts, read_retention_texts
from lora_kit.training.scratch import scratch_arm
from tests.adapter.test_peft_methods import logits_of, losses_of_steps
from tests.training.cut import cut_off

OPTIONS = {"init_lora_weights": "corda"}
SPEC = AdapterSpec(rank=4, alpha=8.0, options=OPTIONS)
IDS = torch.randint(20, 4_000, (2, 16), generator=torch.Generator().manual_seed(0))
TEXTS = CordaSpec(rows=12, length=32)


def texts_of(backbone: Backbone, spec: CordaSpec = TEXTS) -> RetentionTexts:
    texts = read_retention_texts(spec, backbone.tokenizer, 0, "retention.corda", spec.rows)
    return RetentionTexts(corda=texts)


def preserving(backbone: Backbone, training: Sequence[Example] = ()) -> Any:
    model = attach(backbone, SPEC, 0)
    initialise(model, backbone, SPEC, texts_of(backbone).initial_rows(training), 0)
    return model


def covariance(model: Any, layer: torch.nn.Module, examples: Sequence[Example]) -> torch.Tensor:
    """Mean over texts of X^T X, each text's X divided by its largest entry, with PEFT's damping."""
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _module, given, _out: seen.append(given[0][0]))
    with torch.no_grad():
        for example in examples:
            model(input_ids=torch.tensor([example.input_ids]))
    handle.remove()
    scaled = [one.double() / one.double().max().abs() for one in seen]
    mean = torch.stack([one.T @ one for one in scaled]).mean(dim=0)
    return mean + 0.01 * mean.diagonal().mean() * torch.eye(len(mean), dtype=torch.float64)


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"])
def test_the_factors_are_the_directions_with_the_smallest_singular_values(
    tiny_backbone: Backbone, name: str
) -> None:
    path = f"model.layers.1.{name}"
    linear: Any = tiny_backbone.model.get_submodule(path)
    corda = texts_of(tiny_backbone).corda
    assert corda is not None
    inputs = covariance(tiny_backbone.model, linear, corda.examples)
    weight = linear.weight.detach().double().clone()
    model = preserving(tiny_backbone)
    layer = model.get_submodule(f"base_model.model.{path}")
    left, sizes, right = torch.linalg.svd(weight @ inputs, full_matrices=False)
    assert sizes[-5] > 1.001 * sizes[-4]  # otherwise the directions are not defined
    smallest = (left[:, -4:] * sizes[-4:]) @ right[-4:] @ torch.linalg.inv(inputs)
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    update = layer.scaling["default"] * b[:, :4] @ a[:4]
    torch.testing.assert_close(update.double(), smallest, rtol=1e-2, atol=1e-4)
    largest = (left[:, :4] * sizes[:4]) @ right[:4] @ torch.linalg.inv(inputs)
    assert (update - largest).norm() > largest.norm() / 2
    assert torch.equal(a[:4], a[4:])
    assert torch.equal(b[:, :4], -b[:, 4:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_initially_equals_the_base_which_training_does_not_change(
    tiny: Path, dtype: str
) -> None:
    spec = BackboneSpec(model=str(tiny), quantization="none", dtype=dtype)
    backbone = load(resolve(spec), spec)
    base = logits_of(backbone.model)
    model = preserving(backbone)
    # A layer's output is rounded again after the update is added.
    tolerance = 1e-4 if dtype == "float32" else 2e-2
    torch.testing.assert_close(logits_of(model), base, rtol=tolerance, atol=tolerance)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    optimizer = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0)
    losses = losses_of_steps(model, IDS, optimizer)
    assert losses[-1] < losses[0]
    with adapter_disabled(model):
        assert torch.equal(logits_of(model), base)


def test_texts_are_used_in_place_of_training_rows(
    tiny_backbone: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Example(tuple(range(20, 60)), tuple(range(20, 60)), False, "row 0", "0")
    preserving(tiny_backbone, [row])
    said = " ".join(capsys.readouterr().err.split())
    assert "computing the initial factors from 12 texts of python-reference; half" in said
    assert "training rows" not in said


def test_all_texts_are_used_and_a_sample_of_training_rows() -> None:
    examples = [Example((n,), (n,), False, "", str(n)) for n in range(80)]
    assert len(InitialRows(examples).sample(0)) == 64
    assert set(InitialRows(examples, "prose").sample(0)) == set(examples)


@pytest.mark.parametrize(("rows", "is_warned"), [(1, True), (12, False)])
def test_texts_with_fewer_tokens_than_inputs_are_warned_of(
    tiny_backbone: Backbone, tiny_recipe: Recipe, rows: int, is_warned: bool
) -> None:
    texts = texts_of(tiny_backbone, CordaSpec(rows=rows, length=32))
    context = PreflightContext(
        tiny_recipe, Launch(), model=attach(tiny_backbone, SPEC, 0), texts=texts
    )
    warning = warn_of_few_corda_texts(context)
    assert (warning is not None) is is_warned
    if warning:
        assert "the texts have 32 tokens, fewer than the 128 inputs of model.layers.0." in warning


def preserving_recipe(recipe: Recipe, source: Path | str, **training: Any) -> Recipe:
    document = recipe.model_dump(mode="json")
    document["adapter"] = {"rank": 4, "options": OPTIONS}
    texts = {"source": str(source), "rows": 6, "length": 32}
    document["retention"] = {"corda": texts, "entropy_weighting": {}}
    document["training"] |= training
    return Recipe.model_validate(document)


def test_the_same_texts_give_the_same_factors(tiny_backbone: Backbone) -> None:
    first = preserving(copy.deepcopy(tiny_backbone)).state_dict()
    second = preserving(tiny_backbone).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_texts_do_not_resume_a_training(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [{"text": f"A story of {n} and of {n + 1}, and of nobody else."} for n in range(6)]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in told))
    recipe = preserving_recipe(tiny_recipe, texts, save_steps=1)
    cut_off(monkeypatch, recipe, tmp_path / "run", 1)
    texts.write_text(texts.read_text().replace("story", "report"))
    with pytest.raises(RecipeError, match=r"changed \(the texts of retention\.corda\)"):
        pipeline.train(recipe, tmp_path / "run", resume=True)


def test_from_scratch_the_adapter_has_its_texts_and_no_retention_method(
    tiny_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = preserving_recipe(tiny_recipe, "python-reference")
    trained = pipeline.train(recipe, tmp_path / "run")
    assert "entropy_weight" in trained.run.metrics.read_text()
    session, data = trained.session, trained.data
    assert data is not None
    capsys.readouterr()
    scratch_arm(session, lambda: data).load()
    assert "from 6 texts of python-reference" in " ".join(capsys.readouterr().err.split())
    metrics = (session.run.scratch / "metrics.jsonl").read_text()
    assert "loss" in metrics
    assert "entropy_weight" not in metrics
