"""Loss, steps and saved adapter of a classifier."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.nn.functional import cross_entropy

from lora_kit import pipeline
from lora_kit.adapter.attach import attach, attach_saved
from lora_kit.adapter.saved import save_adapter
from lora_kit.backbone import load as backbones
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import HeadOutputs, pad_right
from lora_kit.backbone.load import Backbone
from lora_kit.data.dataset import prepare
from lora_kit.data.prepared import PreparedData
from lora_kit.modeling import features
from lora_kit.modeling.features import frozen_features
from lora_kit.recipe.adapter import VIRTUAL, AdapterSpec, PeftMethod
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.classification import ClassificationSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import AdapterError, DataError
from lora_kit.training.head_losses.classes import ClassLoss
from tests.classifying import classes_recipe
from tests.plain_process import run_plain
from tests.training.cut import cut_off, losses
from tests.training_rows import training_rows

CLASSES = HeadOutputs("classification", ("bird", "fruit", "metal"))
# Loads saved classifiers with PEFT and transformers only.
PLAIN = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification
backbone, *adapters = sys.argv[1:]
found = []
for adapter in adapters:
    config = AutoConfig.from_pretrained(adapter)
    base = AutoModelForSequenceClassification.from_pretrained(
        backbone, config=config, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    ids = torch.tensor([[5, 6, 7], [9, 8, config.pad_token_id]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    logits = model(input_ids=ids, attention_mask=mask).logits.tolist()
    found.append([logits, list(config.id2label.values())])
print(json.dumps(found))
"""


def loaded(model: Path) -> Backbone:
    spec = BackboneSpec(model=str(model), quantization="none", dtype="float32")
    return backbones.load(resolve(spec), spec, CLASSES)


def prepared(recipe: Recipe, backbone: Backbone) -> PreparedData:
    rows, _ = training_rows(recipe.data, recipe.seed)
    return prepare(rows, backbone.tokenizer, recipe.data, outputs=CLASSES)


def test_a_weighted_loss_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 3, generator=generator)
    targets = torch.tensor([0, 1, 1, 2, 0, 1, 1, 1])
    loss = ClassLoss.of(
        ClassificationSpec(class_weights={"fruit": 0.5, "metal": 4.0}),
        CLASSES.names,
        targets.tolist(),
    )
    assert loss.weights.tolist() == [1.0, 0.5, 4.0]
    expected = cross_entropy(logits, targets, weight=loss.weights)
    assert torch.allclose(
        loss.of_rows(logits, targets).sum() / loss.weight_of(targets).sum(), expected
    )
    balanced = ClassLoss.of(
        ClassificationSpec(class_weights="balanced"), CLASSES.names, targets.tolist()
    )
    # 8 rows over 3 classes of 2, 5 and 1.
    assert torch.allclose(balanced.weights, torch.tensor([8 / 6, 8 / 15, 8 / 3]))


def test_a_focal_loss_is_that_of_its_paper() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]], requires_grad=True)
    targets = torch.tensor([0, 2])
    p = logits.detach().softmax(dim=-1)[[0, 1], targets]
    expected = (-((1 - p) ** 2) * p.log()).sum()
    loss = ClassLoss(torch.ones(3), gamma=2.0)
    assert torch.allclose(loss.of_rows(logits, targets).sum(), expected)
    # Rows with p = 1 in float32, and unlabeled padding rows, have no loss.
    certain = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    half = ClassLoss(torch.ones(3), gamma=0.5)
    half.of_rows(torch.cat([certain, certain]), torch.tensor([0, -100])).sum().backward()
    assert torch.isfinite(certain.grad).all()
    assert half.weight_of(torch.tensor([0, -100])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("which", ["tiny", "tiny_encoder"])
def test_features_give_what_the_whole_model_gives(
    which: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model_path = request.getfixturevalue(which)
    recipe = classes_recipe(model_path, tmp_path, adapter={"method": "head"})
    backbone = loaded(model_path)
    model = attach(backbone, recipe.adapter, 0).eval()
    data = prepared(recipe, backbone)
    found = frozen_features(backbone, model, data)
    targets = torch.tensor([example.labels[-1] for example in data.examples])
    batch = pad_right([e.input_ids for e in data.examples], backbone.tokenizer.pad_token_id)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    whole = model(**batch).logits
    by_model = torch.autograd.grad(cross_entropy(whole, targets), trained)
    own = found.batch(range(len(targets)), targets)
    short = found.head(own["features"])
    by_features = torch.autograd.grad(cross_entropy(short, own["targets"]), trained)
    assert torch.allclose(short, whole, atol=1e-5)
    for one, other in zip(by_features, by_model, strict=True):
        assert torch.allclose(one, other, atol=1e-6)

    def never(*_: Any) -> Any:
        raise AssertionError("computed a second time")

    monkeypatch.setattr(features, "_compute", never)
    assert torch.equal(frozen_features(backbone, model, data).values, found.values)


def test_micro_batches_weigh_as_the_whole_step(tiny_encoder: Path, tmp_path: Path) -> None:
    def first(micro: int) -> dict[str, float]:
        recipe = classes_recipe(
            tiny_encoder,
            tmp_path,
            classification={"class_weights": "balanced", "focal_gamma": 2.0},
            training={"batch_size": 8, "micro_batch_size": micro, "epochs": 0.1},
        )
        backbone = loaded(tiny_encoder)
        for module in backbone.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        backbone.model.config.attention_probs_dropout_prob = 0.0
        monkeypatch = pytest.MonkeyPatch()
        # The groups of similar length usually have the size of a forward pass.
        monkeypatch.setattr("lora_kit.training.steps.length_group_size", lambda *_: 8)
        monkeypatch.setattr("lora_kit.pipeline.loaded_inputs.load", lambda *_: backbone)
        with monkeypatch.context():
            result = pipeline.train(recipe, tmp_path / f"run-{micro}").result
        monkeypatch.undo()
        return result.history[0]

    whole, parts = first(8), first(2)
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def test_held_out_rows_without_a_class_name_their_source(
    tiny_encoder: Path, chats: Path, tmp_path: Path
) -> None:
    document = classes_recipe(tiny_encoder, tmp_path).model_dump(mode="json")
    document["data"]["validation"] = [{"source": str(chats)}]
    said = r"chats\.jsonl:1: .* needs a class .*\(got none\).* data\.validation\.N\.columns"
    with pytest.raises(DataError, match=said):
        pipeline.train(Recipe.model_validate(document), tmp_path / "run")


@pytest.mark.parametrize(
    "adapter",
    [{"method": "head"}, {}, {"rank": 4, "options": {"init_lora_weights": "pissa"}}],
    ids=["head", "lora", "pissa"],
)
def test_a_training_of_classes_goes_on_where_it_was_cut_off(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: dict[str, Any]
) -> None:
    recipe = classes_recipe(
        tiny_encoder,
        tmp_path,
        adapter=adapter,
        training={"epochs": 2.0, "save_steps": 1},
    )
    with monkeypatch.context() as patched:
        cut_off(patched, recipe, tmp_path / "cut", 3)
    pipeline.train(recipe, tmp_path / "cut", resume=True)
    pipeline.train(recipe, tmp_path / "whole")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 12


METHODS = ("head", "lora", "full", "last-1")


@pytest.mark.parametrize("which", [pytest.param("tiny", marks=pytest.mark.slow), "tiny_encoder"])
def test_peft_alone_loads_head_and_adapter_whole(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model_path = request.getfixturevalue(which)
    ids, mask = torch.tensor([[5, 6, 7], [9, 8, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    expected, places = [], []
    for method in METHODS:
        recipe = classes_recipe(model_path, tmp_path, adapter={"method": method})
        session = pipeline.train(recipe, tmp_path / method).session
        ids[1, 2] = session.backbone.tokenizer.pad_token_id
        with torch.no_grad():
            expected.append(session.model.eval()(input_ids=ids, attention_mask=mask).logits)
        places.append(str(session.run.adapter))
        again = attach_saved(loaded(model_path), session.run.adapter)
        with torch.no_grad():
            assert torch.equal(again(input_ids=ids, attention_mask=mask).logits, expected[-1])
    found = json.loads(run_plain(PLAIN, model_path, *places))
    for (logits, classes), mine in zip(found, expected, strict=True):
        assert classes == list(CLASSES.names)
        assert torch.allclose(torch.tensor(logits), mine, atol=1e-6)


# Methods that do not train the head, as of PEFT 0.21.
NOT_HERE = {"trainable_tokens": "PEFT neither trains nor saves a classifier's head"}
# Options for methods whose defaults require layers larger than 32.
OWN: dict[str, dict[str, Any]] = {
    "adalora": {"rank": 4},
    "c3a": {"options": {"block_size": 32}},
    "ln_tuning": {"target_modules": ["LayerNorm"]},
    "miss": {"rank": 4},
    "road": {"options": {"group_size": 32}},
    "shira": {"rank": 2},
    "trainable_tokens": {
        "target_modules": ["word_embeddings"],
        "options": {"token_indices": [5, 6]},
    },
    "vblora": {"options": {"vector_length": 32}},
    "waveft": {"options": {"n_frequency": 200}},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted({*get_args(PeftMethod)} - {*VIRTUAL}))
def test_methods_of_peft_train_a_head_with_them(
    tiny_encoder: Path, tmp_path: Path, method: str
) -> None:
    backbone = loaded(tiny_encoder)
    spec = AdapterSpec.model_validate({"method": method, **OWN.get(method, {})})
    if method in NOT_HERE:
        with pytest.raises(AdapterError, match=NOT_HERE[method]):
            attach(backbone, spec, 0)
        return
    model = attach(backbone, spec, 0).train()
    batch = pad_right([(5, 6, 7, 8), (9, 5)], backbone.tokenizer.pad_token_id)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    heads = [name for name in trained if "classifier" in name]
    assert heads
    assert len(trained) > len(heads)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        cross_entropy(model(**batch).logits, torch.tensor([0, 2])).backward()
        optimizer.step()
    assert all(trained[name].grad.abs().sum() > 0 for name in heads)
    with torch.no_grad():
        expected = model.eval()(**batch).logits
    save_adapter(model, backbone, tmp_path / "adapter")
    again = attach_saved(loaded(tiny_encoder), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(again(**batch).logits, expected, atol=1e-5)
