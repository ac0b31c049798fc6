"""Loss, unit and saved head of a regression."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import huber_loss

from lora_kit import pipeline
from lora_kit.adapter.attach import attach_saved
from lora_kit.adapter.saved import read_saved_head
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import HeadOutputs, pad_right
from lora_kit.backbone.load import load
from lora_kit.data.rows import Row
from lora_kit.data.scored import numbers_of, output_names, parse_number, parse_numbers
from lora_kit.data.supervision import Example
from lora_kit.recipe.regression import RegressionSpec
from lora_kit.runtime.errors import DataError
from lora_kit.training.head_losses.numbers import NumberLoss
from tests.plain_process import run_plain
from tests.scoring import numbers_recipe

PLAIN = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification
backbone, adapter, inputs = sys.argv[1:]
config = AutoConfig.from_pretrained(adapter)
base = AutoModelForSequenceClassification.from_pretrained(
    backbone, config=config, dtype=torch.float32)
model = PeftModel.from_pretrained(base, adapter).eval()
inputs = {name: torch.tensor(one) for name, one in json.loads(inputs).items()}
numbers = model(**inputs).logits.tolist()
print(json.dumps([numbers, list(config.id2label.values()), config.problem_type]))
"""


def example(*targets: float, label: int = 0) -> Example:
    return Example((5, 6), (-100, label), targets=targets)


def test_the_loss_is_that_of_torch_on_standardised_numbers() -> None:
    table = np.array([[1.0, 100.0], [3.0, 300.0], [8.0, 200.0]])
    loss = NumberLoss.of(RegressionSpec(), table)
    targets = loss.targets([example(*row) for row in table] + [example(label=-100)])
    expected = torch.tensor((table - table.mean(axis=0)) / table.std(axis=0), dtype=torch.float32)
    assert torch.allclose(targets[:3], expected)
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    assert loss.weight_of(targets).tolist() == [1.0, 1.0, 1.0, 0.0]
    squared = 0.5 * (logits[:3] - expected).square().mean(dim=1).sum()
    assert torch.allclose(loss.of_rows(logits, targets).sum(), squared)
    huber = NumberLoss.of(RegressionSpec(loss="huber", huber_delta=0.5), table)
    wanted = huber_loss(logits[:3], expected, reduction="none", delta=0.5).mean(dim=1).sum()
    assert torch.allclose(huber.of_rows(logits, targets).sum(), wanted)


def test_numbers_are_not_centred_for_a_head_that_cannot_add_their_mean() -> None:
    loss = NumberLoss.of(RegressionSpec(), np.array([[1.0], [3.0]]), has_bias=False)
    assert loss.targets([example(3.0)]).tolist() == [[3.0]]


@pytest.mark.parametrize("which", ["tiny", "tiny_encoder"])
def test_plain_transformers_gives_numbers_in_their_own_unit(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model_path, names = request.getfixturevalue(which), ("price", "quality")
    recipe = numbers_recipe(model_path, tmp_path, names)
    trained = pipeline.train(recipe, tmp_path / "run")
    if which == "tiny":
        # It has no bias and begins with the mean of the rows: from 0, the first loss would be 33.
        assert trained.result.first_loss < 1.5
    session, data = trained.session, trained.data
    assert data is not None
    saved = read_saved_head(session.run.adapter)
    assert saved is not None
    assert saved.outputs == HeadOutputs("regression", names)
    rows = [example.input_ids for example in data.prepared.examples[:6]]
    inputs = pad_right(rows, session.backbone.tokenizer.pad_token_id)
    with torch.no_grad():
        mine = session.model.eval()(**inputs).logits
    # The numbers are 100 to 150, with a mean of 125.
    assert (mine > 90).all()
    assert (mine < 160).all()
    told = json.dumps({name: one.tolist() for name, one in inputs.items()})
    printed = run_plain(PLAIN, model_path, session.run.adapter, told)
    numbers, found, problem = json.loads(printed)
    assert (found, problem) == (list(names), "regression")
    assert torch.allclose(torch.tensor(numbers), mine, atol=1e-3)


@pytest.mark.parametrize("method", ["head", "lora", "full", "last-1"])
def test_a_saved_regression_has_the_unit_of_its_rows_with_any_method(
    tiny_encoder: Path, tmp_path: Path, method: str
) -> None:
    """A training that has ended is not changed once more."""
    training = {"epochs": 0.2, "save_steps": 1}
    recipe = numbers_recipe(tiny_encoder, tmp_path, adapter={"method": method}, training=training)
    run = tmp_path / "run"
    first = pipeline.train(recipe, run)
    again = pipeline.train(recipe, run, resume=True)
    outputs = HeadOutputs("regression", ("score",))
    backbone = load(resolve(recipe.backbone), recipe.backbone, outputs)
    batch = pad_right([(5, 6, 7)], backbone.tokenizer.pad_token_id)
    model = attach_saved(backbone, run / "adapter")
    with torch.no_grad():
        number = float(model.eval()(**batch).logits)
    assert first.result.steps == again.result.steps == 2
    assert 75 < number < 175


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("much", r"f:1: score: not a number \(got 'much'\)"),
        (True, "not a number"),
        (None, "not a number"),
        (math.nan, "must be finite"),
        ("inf", "must be finite"),
    ],
)
def test_what_is_no_number_is_refused(value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_number(value, "score", "f:1")


@pytest.mark.parametrize("value", ["{", [], {}, "3", {"a": "x"}, {"a": None}])
def test_what_are_no_numbers_is_refused(value: object) -> None:
    with pytest.raises(DataError, match="f:1: scores"):
        parse_numbers(value, "scores", "f:1")


def test_numbers_in_csv_are_read() -> None:
    assert parse_number("1e3", "score", "f:1") == 1000.0
    assert parse_numbers('{"a": 1}', "scores", "f:1") == {"a": 1.0}


def test_rows_without_the_numbers_of_the_head_are_refused() -> None:
    rows = [Row("f:1", "", values={"a": 1, "b": 2}), Row("f:2", "", values={"a": 1})]
    with pytest.raises(DataError, match=r"f:2: scores: other numbers .*\(got a; the head has a, b"):
        output_names(rows, RegressionSpec())
    with pytest.raises(DataError, match=r"the head has b\)"):
        output_names(rows, RegressionSpec(outputs=["b"]))
    same = [Row("f:1", "", values={"a": 1, "b": 2}), Row("f:2", "", values={"a": 1, "b": 3})]
    with pytest.raises(DataError, match=r"nothing to learn \(got a 1 in 2 rows\)"):
        output_names(same, RegressionSpec())
    with pytest.raises(DataError, match=r"f:3: .*needs a number in each row \(got none\)"):
        numbers_of(Row("f:3", ""), None, "data.train")
