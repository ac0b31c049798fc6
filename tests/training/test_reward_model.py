"""Reward models: loss, steps, and the saved adapter."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import logsigmoid

from lora_kit import pipeline
from lora_kit.adapter.attach import attach_saved
from lora_kit.adapter.saved import read_saved_head
from lora_kit.adapter.saved_heads.reward import SavedReward
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import REWARD, pad_right
from lora_kit.backbone.load import load
from lora_kit.data.tokenization import end_of_turn_id
from lora_kit.preflight.context import PreflightContext
from lora_kit.preflight.launch_checks import refuse_distributed_head
from lora_kit.preflight.make_plan import make_plan
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import DataError, RecipeError, TrainingError
from lora_kit.runtime.launch import Launch
from lora_kit.training.head_summary import length_log_odds
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.preferences.objectives import objective_trainer
from tests.plain_process import run_plain
from tests.rewarding import reward_recipe, trainer_inputs
from tests.training.cut import cut_off, losses, sha256

# Program that loads the saved adapter with PEFT alone.
PLAIN = """
import json, sys, torch
from peft import PeftModelForSequenceClassification
from transformers import AutoConfig, AutoModelForSequenceClassification
found = []
for backbone, adapter in zip(sys.argv[1::2], sys.argv[2::2]):
    config = AutoConfig.from_pretrained(adapter)
    base = AutoModelForSequenceClassification.from_pretrained(
        backbone, config=config, dtype=torch.float32)
    model = PeftModelForSequenceClassification.from_pretrained(base, adapter).eval()
    ids = torch.tensor([[5, 6, 7], [9, 8, config.pad_token_id]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    logits = model(input_ids=ids, attention_mask=mask).logits.tolist()
    found.append([logits, config.num_labels, list(config.id2label.values())])
print(json.dumps(found))
"""


def rewards_of(
    inputs: TrainingInputs, model: Any, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rewards of the first pairs, computed one row at a time."""
    pad = inputs.backbone.tokenizer.pad_token_id
    chosen, rejected = (
        torch.stack(
            [
                model(**pad_right([unit.examples[side].input_ids], pad)).logits[0, 0]
                for unit in inputs.data.units[:number]
            ]
        )
        for side in (0, 1)
    )
    return chosen, rejected


@pytest.mark.parametrize(
    ("which", "method", "centering"),
    [("tiny", "lora", 0.0), ("tiny", "head", 0.1), ("tiny_encoder", "lora", 0.1)],
)
def test_the_loss_is_that_of_the_bradley_terry_model(
    which: str,
    method: str,
    centering: float,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The split into passes does not matter, nor does training only the head on features."""
    model_path = request.getfixturevalue(which)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipe = reward_recipe(
        model_path,
        tmp_path,
        adapter={"method": method},
        reward={"centering": centering},
        training={} if method == "head" else {"micro_batch_size": 2},
    )
    inputs = trainer_inputs(recipe, tmp_path / "checkpoints")
    for module in inputs.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    inputs.model.config.attention_probs_dropout_prob = 0.0
    head = inputs.backbone.model.get_submodule(inputs.backbone.head.module)  # type: ignore[union-attr]
    trainer: Any = objective_trainer(inputs, [])
    with torch.no_grad():
        for parameter in head.parameters():
            parameter *= 20  # so that rewards differ
    chosen, rejected = rewards_of(inputs, inputs.model.eval(), 3)
    wanted = -logsigmoid(chosen - rejected) + centering * (chosen + rejected) ** 2
    found = trainer.training_step(inputs.model, {"units": inputs.data.units[:3], "rows": [0]})
    assert float(found) == pytest.approx(wanted.mean().item(), rel=1e-5)
    assert wanted.mean().item() != pytest.approx(math.log(2), abs=1e-3)
    gradients = {n: p.grad for n, p in inputs.model.named_parameters() if p.requires_grad}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients.values())
    assert any("modules_to_save" in name for name in gradients)


def test_pairs_are_learned_and_logged(reward_run: Path) -> None:
    lines = [json.loads(line) for line in (reward_run / "metrics.jsonl").open()]
    assert len(lines) == 6
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    assert (lines[-1]["accuracy"], lines[-1]["margin"] > 0.5) == (1.0, True)
    assert math.isfinite(lines[-1]["mean_reward"])
    assert lines[-1]["tokens"] > lines[0]["tokens"] > 0


def test_resumed_training_ends_like_uninterrupted_training(
    tiny: Path, reward_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training is interrupted in the second epoch, whose order differs from the first."""
    recipe = reward_recipe(tiny, tmp_path)
    cut_off(monkeypatch, recipe, tmp_path / "run", 4)
    other = reward_recipe(tiny, tmp_path, reward={"centering": 0.5})
    with pytest.raises(RecipeError, match=r"reward\.centering: 0\.0 -> 0\.5"):
        pipeline.train(other, tmp_path / "run", resume=True)
    pipeline.train(recipe, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(reward_run)
    assert sha256(tmp_path / "run") == sha256(reward_run)


def test_gradient_checkpointing_does_not_change_losses(
    tiny: Path, reward_run: Path, tmp_path: Path
) -> None:
    recipe = reward_recipe(tiny, tmp_path, training={"gradient_checkpointing": True})
    pipeline.train(recipe, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(reward_run), abs=1e-5)


def test_adapter_and_head_on_quantized_weights_stay_in_float32(tiny: Path, tmp_path: Path) -> None:
    """TRL would cast the adapter to bfloat16."""
    recipe = reward_recipe(tiny, tmp_path, backbone={"quantization": "nf4", "dtype": "bfloat16"})
    inputs = trainer_inputs(recipe, tmp_path / "checkpoints")
    trainer: Any = objective_trainer(inputs, [])
    trained = {n: p for n, p in inputs.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    loss = trainer.training_step(inputs.model, {"units": inputs.data.units[:2], "rows": [0, 1]})
    assert torch.isfinite(loss)
    assert any("score" in name and p.grad.abs().sum() > 0 for name, p in trained.items())


@pytest.mark.slow
def test_peft_alone_loads_head_and_adapter(tiny: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    ids, mask = torch.tensor([[5, 6, 7], [9, 8, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    wanted, arguments = [], []
    for model_path, method in ((tiny, "lora"), (tiny_encoder, "full"), (tiny_encoder, "head")):
        recipe = reward_recipe(model_path, tmp_path, adapter={"method": method})
        session = pipeline.train(recipe, tmp_path / f"run-{len(wanted)}").session
        ids[1, 2] = session.backbone.tokenizer.pad_token_id
        with torch.no_grad():
            wanted.append(session.model.eval()(input_ids=ids, attention_mask=mask).logits)
        arguments += [model_path, session.run.adapter]
        backbone = load(resolve(recipe.backbone), recipe.backbone, REWARD)
        again = attach_saved(backbone, session.run.adapter)
        with torch.no_grad():
            assert torch.equal(again(input_ids=ids, attention_mask=mask).logits, wanted[-1])
    printed = run_plain(PLAIN, *arguments)
    for (logits, outputs, names), mine in zip(json.loads(printed), wanted, strict=True):
        assert (outputs, names) == (1, ["reward"])
        assert torch.allclose(torch.tensor(logits), mine, atol=1e-6)
    assert not torch.allclose(wanted[1], wanted[2], atol=1e-3)


def test_answers_are_tokenized_as_in_sft_or_with_the_tokens_of_the_encoder(
    tiny: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    inputs = trainer_inputs(reward_recipe(tiny, tmp_path), tmp_path)
    unit = inputs.data.units[1]
    tokenizer = inputs.backbone.tokenizer
    assert [example.input_ids[-1] for example in unit.examples] == [end_of_turn_id(tokenizer)] * 2
    inputs = trainer_inputs(reward_recipe(tiny_encoder, tmp_path), tmp_path)
    tokenizer = inputs.backbone.tokenizer
    shown = [tokenizer.decode(list(e.input_ids)) for e in inputs.data.units[1].examples]
    assert shown == [
        "[CLS] what is 1 plus 4? it is 5. [SEP]",
        "[CLS] what is 1 plus 4? who knows about 1? [SEP]",
    ]
    answer = inputs.data.units[1].examples[0]
    learned = [label for label in answer.labels if label != -100]
    assert tokenizer.decode(learned) == "it is 5."


def test_log_odds_of_length_follow_the_pairs(tiny: Path, tmp_path: Path) -> None:
    units = trainer_inputs(reward_recipe(tiny, tmp_path), tmp_path).data.units
    shorter = [unit for number, unit in enumerate(units) if number % 3]
    longer = [unit for number, unit in enumerate(units) if number % 3 == 0]
    assert length_log_odds(longer) > 0.1
    assert length_log_odds(shorter) < 0
    assert math.isfinite(length_log_odds(longer))
    even = [unit for unit in units if unit.length == len(unit.examples[0].input_ids)][:1]
    same = [type(one)(one.row, (one.examples[0], one.examples[0])) for one in even]
    assert length_log_odds(same) == 0.0


def test_the_head_is_saved_next_to_the_adapter(reward_run: Path) -> None:
    found = read_saved_head(reward_run / "adapter")
    assert isinstance(found, SavedReward)
    assert found.pairs == 12
    assert found.outputs == REWARD


@pytest.mark.parametrize(
    ("section", "part"),
    [
        ({"merge": {"base": "original"}}, "merge: a head cannot be merged"),
        ({"retention": {"kl": {}}}, "retention.kl: works with the objectives sft and text only"),
        (
            {"retention": {"early_stopping": {}}},
            "retention.early_stopping: works with the objectives sft and text only",
        ),
        ({"data": {"packing": True}}, "data.packing: works with the objectives sft and text only"),
        (
            {"data": {"replay": {"source": "python-reference", "fraction": 0.1}}},
            "data.replay: works with the objectives sft and text only",
        ),
        (
            {"evaluation": {"arms": ["base", "adapter", "fewshot"]}},
            "reward has no such arm (got fewshot)",
        ),
        (
            {"training": {"max_tokens_per_batch": 99}},
            "training.max_tokens_per_batch: works with the objectives sft, text, ",
        ),
        ({"preference": {}}, "preference: is read by the objectives dpo, kto and orpo only"),
        ({"classification": {}}, "classification: is read by the objective classification only"),
        (
            {"adapter": {"method": "head"}, "training": {"micro_batch_size": 2}},
            "training.micro_batch_size: with adapter.method head",
        ),
        ({"adapter": {"method": "adalora"}}, "adapter.method: adalora works"),
        ({"adapter": {"options": {"modules_to_save": ["score"]}}}, "the head is saved there"),
        (
            {"training": {"objective": "dpo"}, "reward": {}},
            "reward: is read by the objective reward only",
        ),
    ],
)
def test_fields_incompatible_with_a_reward_model_are_refused(
    section: dict[str, Any], part: str
) -> None:
    document: dict[str, Any] = {
        "name": "x",
        "backbone": {"model": "m", "quantization": "none"},
        "data": {"train": [{"source": "stdlib-docstring-pairs"}]},
        "training": {"objective": "reward"},
    }
    for name, value in section.items():
        document[name] = document.get(name, {}) | value
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(document)
    assert part in str(caught.value)


def test_rows_that_are_not_pairs_are_refused_before_the_run_is_created(
    tiny: Path, tmp_path: Path
) -> None:
    recipe = reward_recipe(tiny, tmp_path)
    Path(recipe.data.train[0].source).write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    with pytest.raises(
        DataError, match=r"train\.jsonl:1: .*dpo, orpo and reward need preference pairs"
    ):
        pipeline.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sharding_and_a_shared_head_are_refused_and_a_plan_shows_the_answers(
    tiny: Path, tmp_path: Path
) -> None:
    recipe = reward_recipe(tiny, tmp_path)
    with pytest.raises(TrainingError, match="reward keeps the full head in each process"):
        refuse_distributed_head(PreflightContext(recipe, Launch(fsdp=True)))
    head = reward_recipe(tiny, tmp_path, adapter={"method": "head"})
    refuse_distributed_head(PreflightContext(recipe, Launch(processes=2)))
    with pytest.raises(TrainingError, match=r"adapter\.method: head .* \(got 2 processes\)"):
        refuse_distributed_head(PreflightContext(head, Launch(processes=2)))
    plan = make_plan(recipe)
    found = plan.on_backbone
    assert found is not None
    assert (plan.optimizer_steps, found.forecast) == (6, None)
    assert found.timing is not None
    assert found.timing.probe.rows == 8
    assert found.timing.duration.validation == 0.0
    assert found.timing.duration.training > found.timing.probe.seconds
    shown = ["".join(span.text for span in sample if span.supervised) for sample in found.samples]
    assert shown[1] == "Who knows about 0?<|im_end|>"
