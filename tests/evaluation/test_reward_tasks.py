"""Evaluation of a reward model on multiple-choice tasks."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_kit import pipeline
from lora_kit.adapter.saved import read_saved_head
from lora_kit.adapter.saved_heads.reward import SavedReward
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import REWARD, pad_right
from lora_kit.backbone.load import Backbone, load
from lora_kit.data.dataset import prepare
from lora_kit.data.units import PreparedUnits
from lora_kit.evaluation.arms.reward_model import LengthBaseline
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.grading import grade_reward
from lora_kit.evaluation.item import Item, Outcome
from lora_kit.evaluation.requests import RewardRequest
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict_file import check_verdict
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import AdapterError, EvaluationError, MergeError, ReleaseError
from tests.rewarding import reward_recipe, write_pairs, write_suite
from tests.training_rows import training_rows


@pytest.fixture
def head(tiny: Path) -> Backbone:
    spec = BackboneSpec(model=str(tiny), quantization="none", dtype="float32")
    return load(resolve(spec), spec, REWARD)


def asked(head: Backbone, folder: Path, **own: Any) -> Any:
    suite = write_suite(folder / "suite.yaml", write_pairs(folder / "rows.jsonl", 6), **own)
    return plan_work([Suite.load(suite)], head)[0]


def test_an_item_has_the_rows_of_the_training(head: Backbone, tmp_path: Path) -> None:
    recipe = reward_recipe(Path("m"), tmp_path)
    rows, _ = training_rows(recipe.data, recipe.seed, "reward")
    data = prepare(rows, head.tokenizer, recipe.data, 0, "reward", REWARD)
    assert isinstance(data, PreparedUnits)
    for item, unit in zip(asked(head, tmp_path).task.items, data.units, strict=False):
        assert isinstance(item.request, RewardRequest)
        assert item.choices[item.answer] == unit.row.messages[-1].content
        right = item.request.answers[item.answer]
        assert (right, item.request.answers[1 - item.answer]) == tuple(
            example.input_ids for example in unit.examples
        )


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"kind": "generation", "metric": "chrf", "chat": False, "template": None},
            r"a reward model supports only tasks of kind multiple_choice \(got kind generation\)",
        ),
        ({"score": "accuracy_per_byte"}, "the complete answer, whatever its length"),
        ({"shots": 1}, r"a reward model takes no examples \(got shots 1\)"),
    ],
)
def test_what_a_reward_model_cannot_be_asked_is_refused(
    head: Backbone, tmp_path: Path, own: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        asked(head, tmp_path, **own)
    with pytest.raises(EvaluationError, match=r"the base of a reward model .*role retention"):
        plan_work([Suite.load("core-retention")], head)


def test_a_grade_is_of_the_highest_reward_and_a_coin_decides_between_equal_ones() -> None:
    def graded(rewards: tuple[float, ...], name: str = "a", score: str = "accuracy") -> Any:
        item = Item(name, "", "", "", RewardRequest(((1,), (2,))), choices=("x", "y"), answer=0)
        return grade_reward(item, Outcome(rewards), score=score)

    assert (graded((1.0, -1.0)).score, graded((1.0, -1.0)).output) == (1.0, "x")
    loss = graded((1.0, -1.0), score="loss").score
    assert loss == pytest.approx(math.log(1 + math.exp(-2)))
    assert graded((math.nan, 1.0)).score is None
    tied = [graded((2.0, 2.0), f"item {n}").score for n in range(200)]
    assert 70 < sum(tied) < 130
    assert tied == [graded((2.0, 2.0), f"item {n}").score for n in range(200)]


def test_length_is_worth_what_a_token_is_worth() -> None:
    model = LengthBaseline(SavedReward(3, -0.5), None)
    batch = pad_right([(5, 6, 7), (5,)], 2)
    assert model(**batch).logits.tolist() == [[-1.5], [-0.5]]


def test_a_run_of_rewards_from_training_to_verdict(tiny: Path, tmp_path: Path) -> None:
    """The base is the length of an answer; merge, release and other arms are refused."""
    recipe = reward_recipe(tiny, tmp_path, training={"epochs": 4.0})
    outcome = pipeline.run(recipe, tmp_path / "run")
    assert outcome.release is None
    assert f"ship {tmp_path / 'run' / 'adapter'}" in outcome.refusal
    task = outcome.verdict.suites[0].tasks[0]
    learned = read_saved_head(tmp_path / "run" / "adapter")
    assert isinstance(learned, SavedReward)
    assert task.adapter > 0.9
    (loss,) = (measure for measure in task.measures if measure.name == "loss")
    assert loss.adapter < loss.base
    check_verdict(tmp_path / "run" / "evaluation")
    report = (tmp_path / "run" / "evaluation" / "report.md").read_text()
    assert "no model: the length of the answer; the" in report
    with pytest.raises(MergeError, match="head of a classifier or a reward model cannot be merged"):
        pipeline.merge(tmp_path / "run")
    with pytest.raises(
        ReleaseError, match="a head cannot be merged, so there is no model to release"
    ):
        pipeline.release(tmp_path / "run")
    with pytest.raises(EvaluationError, match=r"arms: not supported with a head \(got scratch\)"):
        pipeline.evaluate(tmp_path / "run", arms=["scratch"])


def test_rewards_are_the_same_whatever_stands_beside_them(tiny: Path, tmp_path: Path) -> None:
    """Rewards in the ledger equal those of single rows, also from the adapter's directory."""
    recipe = reward_recipe(tiny, tmp_path)
    session = pipeline.train(recipe, tmp_path / "run").session
    entries = pipeline.evaluate(session.run.adapter, recipe.evaluation.suites).read_entries()
    found = {e.item: e.log_likelihoods for e in entries if e.arm == "adapter"}
    work = plan_work([Suite.load(recipe.evaluation.suites[0])], session.backbone)[0]
    model, pad = session.model.eval(), session.backbone.tokenizer.pad_token_id
    for item in work.task.items:
        assert isinstance(item.request, RewardRequest)
        for ids, reward in zip(item.request.answers, found[item.id], strict=True):
            with torch.no_grad():
                alone = float(model(**pad_right([ids], pad)).logits)
            assert reward == pytest.approx(alone, abs=1e-5)
    (session.run.adapter / "reward.json").unlink()
    with pytest.raises(AdapterError, match=r"without classes\.json, .*reward\.json or tags\.json"):
        pipeline.evaluate(session.run.adapter, recipe.evaluation.suites)
