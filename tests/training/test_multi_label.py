"""Loss, thresholds and saved head of a multi-label training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from lora_kit import pipeline
from lora_kit.adapter.saved import read_saved_head
from lora_kit.adapter.saved_heads.labels import SavedLabels
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.data.rows import Row
from lora_kit.data.supervision import Example
from lora_kit.data.tagged import label_names, parse_labels
from lora_kit.recipe.multi_label import MultiLabelSpec
from lora_kit.runtime.errors import DataError
from lora_kit.training.head_losses.labels import LabelLoss
from tests.plain_process import run_plain
from tests.tagging import labels_recipe

PLAIN = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification
backbone, adapter = sys.argv[1:]
config = AutoConfig.from_pretrained(adapter)
base = AutoModelForSequenceClassification.from_pretrained(
    backbone, config=config, dtype=torch.float32)
model = PeftModel.from_pretrained(base, adapter).eval()
ids = torch.tensor([[5, 6, 7], [9, 8, config.pad_token_id]])
mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
logits = model(input_ids=ids, attention_mask=mask).logits.tolist()
print(json.dumps([logits, list(config.id2label.values()), config.problem_type]))
"""
TABLE = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 0.0]])


def test_the_loss_is_that_of_torch_with_the_weight_of_rows_that_have_a_label() -> None:
    loss = LabelLoss.of(MultiLabelSpec(positive_weights="balanced"), ("a", "b"), TABLE)
    # One row of four is without a, three are without b.
    assert torch.allclose(loss.weights, torch.tensor([1 / 3, 3.0]))
    examples = [Example((5, 6), (-100, 0), targets=tuple(row)) for row in TABLE.tolist()]
    targets = loss.targets([*examples, Example((5, 6), (-100, -100))])
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    expected = binary_cross_entropy_with_logits(
        logits[:4], targets[:4], pos_weight=loss.weights, reduction="none"
    )
    assert torch.allclose(loss.of_rows(logits, targets).sum(), expected.mean(dim=1).sum())
    assert loss.weight_of(targets).tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]
    given = LabelLoss.of(MultiLabelSpec(positive_weights={"b": 2.0}), ("a", "b"), TABLE)
    assert given.weights.tolist() == [1.0, 2.0]


def test_a_focal_loss_weighs_each_decision_by_its_uncertainty() -> None:
    logits = torch.tensor([[2.0, -1.0], [90.0, 0.5]], requires_grad=True)
    targets = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    p = torch.where(targets > 0, logits.detach().sigmoid(), 1 - logits.detach().sigmoid())
    expected = (-((1 - p) ** 2) * p.log()).mean(dim=1).sum()
    assert torch.allclose(LabelLoss(torch.ones(2), 2.0).of_rows(logits, targets).sum(), expected)
    LabelLoss(torch.ones(2), 0.5).of_rows(logits, targets).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_plain_transformers_gives_the_same_logits_and_the_thresholds_are_beside_them(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    recipe = labels_recipe(tiny_encoder, tmp_path)
    session = pipeline.train(recipe, tmp_path / "run").session
    saved = read_saved_head(session.run.adapter)
    assert isinstance(saved, SavedLabels)
    assert saved.outputs == HeadOutputs("multi-label", ("bird", "fruit", "metal"))
    assert (saved.rows, saved.counts["fruit"], saved.validation_rows) == (36, 18, 12)
    assert all(0 <= one < 1 for one in saved.thresholds.values())
    ids = torch.tensor([[5, 6, 7], [9, 8, session.backbone.tokenizer.pad_token_id]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with torch.no_grad():
        mine = session.model.eval()(input_ids=ids, attention_mask=mask).logits
    printed = run_plain(PLAIN, tiny_encoder, session.run.adapter)
    logits, names, problem = json.loads(printed)
    assert (names, problem) == (["bird", "fruit", "metal"], "multi_label_classification")
    assert torch.allclose(torch.tensor(logits), mine, atol=1e-6)


@pytest.mark.parametrize("value", ["a", "{", None, 3, [3], [""], ["a", None], ["a", "a"]])
def test_what_are_no_labels_is_refused(value: object) -> None:
    with pytest.raises(DataError, match="f:1: labels: "):
        parse_labels(value, "f:1")


def test_labels_in_csv_and_none_at_all_are_read() -> None:
    assert parse_labels('["b", "a"]', "f:1") == ("a", "b")
    assert parse_labels([], "f:1") == ()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"labels": ["a"]}, r"row 0: labels: unknown label \(got 'b'; the head has a\)"),
        ({"labels": ["a", "b", "c"]}, r"no training row has the label.*\(got 'c'\)"),
        ({"positive_weights": {"c": 2.0}}, r"unknown label \(got 'c'\)\. Fix: use a, b"),
    ],
)
def test_labels_that_the_rows_do_not_have_are_refused(spec: object, message: str) -> None:
    rows = [Row("row 0", "", labels=("b",)), Row("row 1", "", labels=("a",))]
    with pytest.raises(DataError, match=message):
        label_names(rows, MultiLabelSpec.model_validate(spec))


def test_rows_without_labels_or_with_one_everywhere_are_refused() -> None:
    for rows, message in (
        ([Row("row 0", "")], r"needs a list of labels in each row \(got none\)"),
        ([Row("row 0", "", labels=())], r"no row has a label"),
        ([Row("row 0", "", labels=("a",))], r"all training rows have the label.*\(got 'a'\)"),
    ):
        with pytest.raises(DataError, match=message):
            label_names(rows, MultiLabelSpec())
