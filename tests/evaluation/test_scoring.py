from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from lora_kit.backbone import Backbone
from lora_kit.errors import DataError, EvaluationError
from lora_kit.evaluation.engine import by_length, stop_token_ids
from lora_kit.evaluation.metrics import load_metric
from lora_kit.evaluation.scoring import (
    Scorer,
    generate,
    in_one_row,
    row_by_row,
    score_choices,
    score_losses,
    way_to_score,
)
from lora_kit.evaluation.suite import TaskSpec
from lora_kit.evaluation.tasks import ChoiceItem, build_task


def task(**fields: Any) -> TaskSpec:
    return TaskSpec.model_validate({"name": "t", **fields})


def scorer_of(backbone: Backbone) -> Scorer:
    return Scorer(backbone.model, backbone.tokenizer, stop_token_ids(backbone))


def choice_log_likelihood(model: Any, item: ChoiceItem, choice: Sequence[int]) -> float:
    """One row for each choice, as the model's own logits have it."""
    ids = torch.tensor([[*item.prompt_ids, *choice]])
    logits = model(ids).logits[0].float().log_softmax(dim=-1)
    start = len(item.prompt_ids) - 1
    return float(sum(logits[start + n, token] for n, token in enumerate(choice)))


@torch.inference_mode()
def test_choices_in_one_row_score_as_each_on_its_own(real_backbone: Backbone) -> None:
    spec = task(kind="multiple_choice", source="general-knowledge", limit=12)
    items = build_task(spec, real_backbone.tokenizer, seed=1).items
    together = score_choices(scorer_of(real_backbone), items, log_likelihoods=in_one_row)
    assert way_to_score(scorer_of(real_backbone), items[:4]) is in_one_row
    for item, score in zip(items, together, strict=True):
        assert isinstance(item, ChoiceItem)
        alone = [choice_log_likelihood(real_backbone.model, item, c) for c in item.choice_ids]
        best = max(range(len(alone)), key=alone.__getitem__)
        assert score.output == item.choices[best]
        assert score.score == float(best == item.answer)


@torch.inference_mode()
def test_a_model_that_carries_a_state_along_the_row_gets_a_row_a_choice(
    tiny_backbone: Backbone,
) -> None:
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        initializer_range=0.5,
    )
    stateful = replace(tiny_backbone, model=Lfm2ForCausalLM(config).eval())
    spec = task(kind="multiple_choice", source="general-knowledge", limit=4)
    items = build_task(spec, stateful.tokenizer, seed=1).items
    assert way_to_score(scorer_of(stateful), items) is row_by_row
    for item, totals in zip(items, row_by_row(scorer_of(stateful), items), strict=True):
        alone = [choice_log_likelihood(stateful.model, item, c) for c in item.choice_ids]
        assert totals == pytest.approx(alone, abs=1e-2)


@torch.inference_mode()
def test_a_loss_does_not_move_with_the_batch(real_backbone: Backbone) -> None:
    spec = task(kind="loss", source="python-reference", limit=6, max_length=96)
    items = build_task(spec, real_backbone.tokenizer, seed=0).items
    scorer = scorer_of(real_backbone)
    together = score_losses(scorer, items)
    for item, score in zip(items, together, strict=True):
        (alone,) = score_losses(scorer, [item])
        assert score.score == pytest.approx(alone.score, abs=1e-3)


@torch.inference_mode()
def test_generation_stops_at_the_end_of_turn_and_pads_change_nothing(
    real_backbone: Backbone,
) -> None:
    spec = task(kind="instructions", source="instructions", limit=5)
    items = build_task(spec, real_backbone.tokenizer, seed=3).items
    scorer = scorer_of(real_backbone)
    together = generate(scorer, items, 12)
    assert together == [generate(scorer, [item], 12)[0] for item in items]
    assert not any("<|im_end|>" in text for text in together)
    assert scorer.stop_token_ids == (2,)


def test_batches_are_within_the_budget_and_lose_nothing() -> None:
    class Thing:
        def __init__(self, number: int):
            self.id = str(number)
            self.length = 10 + number * 7 % 90

    things = [Thing(n) for n in range(70)]
    batches = by_length(things, lambda thing: thing.length, 200)
    assert sorted(t.id for b in batches for t in b) == sorted(t.id for t in things)
    assert all(max(t.length for t in batch) * len(batch) <= 200 for batch in batches)
    longest = [max(t.length for t in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_an_item_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    class Long:
        id = "long"

    assert len(by_length([Long()], lambda _: 999, 100)) == 1


def test_chrf_is_sacrebleus_and_exact_match_is_exact() -> None:
    from sacrebleu.metrics import CHRF

    score = load_metric("chrf")
    expected = CHRF().sentence_score("Return the name.", ["Returns a name."]).score
    assert score("Return the name.", ["Returns a name."]) == pytest.approx(expected)
    assert score("same", ["same"]) == pytest.approx(100)
    exact = load_metric("exact_match")
    assert (exact(" yes ", ["no", "yes"]), exact("Yes", ["yes"])) == (1.0, 0.0)


def test_an_unknown_metric_names_the_bundled_ones() -> None:
    with pytest.raises(EvaluationError, match=r"neither bundled \(chrf, exact_match\)"):
        load_metric("no_such_metric")


def test_a_file_of_choices_is_a_task_and_its_mistakes_are_named(
    tokenizer: Any, tmp_path: Any
) -> None:
    path = tmp_path / "quiz.jsonl"
    path.write_text('{"question": "2+2?", "choices": ["3", "4"], "answer": 1}\n')
    spec = task(kind="multiple_choice", source=str(path))
    (item,) = build_task(spec, tokenizer, 0).items
    assert item.reference == "4"
    for line, part in (
        ('{"question": "?", "choices": ["a"], "answer": 0}', "at least two choices"),
        ('{"question": "?", "choices": ["a", "b"], "answer": 2}', "0 to 1"),
        ('{"question": "?"}', '"choices"'),
        ("{", "not valid JSON"),
    ):
        path.write_text(line + "\n")
        with pytest.raises(DataError, match=r"quiz\.jsonl:1") as caught:
            build_task(spec, tokenizer, 0)
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"kind": "instructions", "source": "python-reference"}, "takes `instructions`"),
        ({"kind": "generation", "source": "python-reference", "metric": "chrf"}, "needs a prompt"),
        ({"kind": "loss", "source": "nowhere"}, "neither a built-in source"),
        ({"kind": "multiple_choice", "source": "nowhere"}, "neither `general-knowledge`"),
    ],
)
def test_a_source_that_does_not_fit_its_kind_is_refused(
    tokenizer: Any, fields: dict[str, Any], part: str
) -> None:
    with pytest.raises(DataError) as caught:
        build_task(task(**fields), tokenizer, 0)
    assert part in str(caught.value)
