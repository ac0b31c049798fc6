"""Likelihoods and texts do not depend on the layout of requests in batches."""

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.engine import batching
from lora_kit.evaluation.engine.batching import batches_by_length
from lora_kit.evaluation.engine.layout_search import LAYOUTS, find_layout, within_window
from lora_kit.evaluation.engine.prefix import shared_prefix
from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer, compute_outcomes
from lora_kit.evaluation.item import Item
from lora_kit.evaluation.requests import (
    Branch,
    ChoiceRequest,
    GenerationRequest,
    LossRequest,
    Request,
)
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.tasks import build_task
from lora_kit.modeling.generation import stop_token_ids
from lora_kit.modeling.prefix import Prefix, encode_prefix

SLOW = LAYOUTS[-1]


def items_of(backbone: Backbone, **fields: Any) -> list[Item]:
    spec = TaskSpec.model_validate({"name": "t", **fields})
    return list(build_task(spec, backbone.tokenizer, seed=1).items)


def requests_of(backbone: Backbone, **fields: Any) -> list[Request]:
    return [item.request for item in items_of(backbone, **fields)]


def scorer_of(backbone: Backbone) -> Scorer:
    return Scorer(backbone.model, backbone.tokenizer, stop_token_ids(backbone))


def prefix_of(backbone: Backbone, requests: Sequence[Request]) -> Prefix:
    ids = shared_prefix(requests)
    assert ids
    return encode_prefix(backbone.model, ids, scorer_of(backbone).device)


def alone(model: Any, request: ChoiceRequest, branch: Branch) -> tuple[float, bool]:
    """Score one branch in a row of its own, directly from the logits of the model."""
    ids = [*request.prompt_ids, *branch.input_ids]
    logits = model(torch.tensor([ids])).logits[0].float().log_softmax(dim=-1)
    scored = range(len(ids) - branch.scored, len(ids))
    greedy = all(int(logits[n - 1].argmax()) == ids[n] for n in scored)
    return float(sum(logits[n - 1, ids[n]].double() for n in scored)), greedy


def assert_same(found: Sequence[Any], wanted: Sequence[Any], tolerance: float = 1e-3) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.log_likelihoods == pytest.approx(b.log_likelihoods, abs=tolerance)
        assert a.text == b.text


@torch.inference_mode()
@pytest.mark.parametrize("shots", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_choices_in_one_row_score_as_each_on_its_own(real_backbone: Backbone, shots: int) -> None:
    requests = requests_of(
        real_backbone, kind="multiple_choice", source="general-knowledge", limit=4, shots=shots
    )
    scorer = scorer_of(real_backbone)
    prefix = prefix_of(real_backbone, requests) if shots else None
    together = compute_outcomes(scorer, requests, BatchLayout(), prefix)
    for request, outcome in zip(requests, together, strict=True):
        assert isinstance(request, ChoiceRequest)
        wanted = [alone(real_backbone.model, request, branch) for branch in request.branches]
        assert outcome.log_likelihoods == pytest.approx([total for total, _ in wanted], abs=1e-3)
        assert list(outcome.greedy) == [greedy for _, greedy in wanted]
    assert find_layout(scorer, requests, prefix.input_ids if prefix else ()) == BatchLayout()


@torch.inference_mode()
def test_only_the_last_tokens_of_a_branch_count(tiny_backbone: Backbone) -> None:
    """Some tasks have choices that differ in their context and share a continuation."""
    request = ChoiceRequest((5, 6), (Branch((7, 8, 9, 10), 2), Branch((11, 9, 10), 2)))
    for layout in (BatchLayout(), SLOW):
        (found,) = compute_outcomes(scorer_of(tiny_backbone), [request], layout)
        wanted = [alone(tiny_backbone.model, request, branch)[0] for branch in request.branches]
        assert found.log_likelihoods == pytest.approx(wanted, abs=1e-4)


@torch.inference_mode()
def test_a_loss_does_not_move_with_the_batch_or_the_prefix(real_backbone: Backbone) -> None:
    requests = requests_of(
        real_backbone, kind="loss", source="stdlib-docstrings", limit=5, shots=1, max_length=512
    )
    scorer = scorer_of(real_backbone)
    shared = compute_outcomes(scorer, requests, BatchLayout(), prefix_of(real_backbone, requests))
    assert_same(shared, [compute_outcomes(scorer, [request], SLOW)[0] for request in requests])


@torch.inference_mode()
def test_generation_stops_at_the_end_of_turn_and_neither_pads_nor_prefix_change_it(
    real_backbone: Backbone,
) -> None:
    requests = requests_of(
        real_backbone, kind="instructions", source="instructions", limit=5, max_new_tokens=12
    )
    scorer = scorer_of(real_backbone)
    together = compute_outcomes(scorer, requests, BatchLayout(), prefix_of(real_backbone, requests))
    assert_same(together, [compute_outcomes(scorer, [request], SLOW)[0] for request in requests])
    assert not any("<|im_end|>" in outcome.text for outcome in together)
    assert scorer.stop_token_ids == (2,)


@torch.inference_mode()
def test_generation_ends_at_a_stop_text(real_backbone: Backbone) -> None:
    (request,) = requests_of(
        real_backbone, kind="instructions", source="instructions", limit=1, max_new_tokens=16
    )
    scorer = scorer_of(real_backbone)
    whole = compute_outcomes(scorer, [request], SLOW)[0].text
    assert isinstance(request, GenerationRequest)
    word = whole.split()[2]
    (cut,) = compute_outcomes(scorer, [replace(request, stop=(word,))], SLOW)
    assert cut.text == whole[: whole.index(word)]


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
    requests = requests_of(
        stateful, kind="multiple_choice", source="general-knowledge", limit=4, shots=2
    )
    layout = find_layout(scorer_of(stateful), requests, shared_prefix(requests))
    assert not layout.tree
    prefix = prefix_of(stateful, requests) if layout.prefix else None
    for request, outcome in zip(
        requests, compute_outcomes(scorer_of(stateful), requests, layout, prefix), strict=True
    ):
        assert isinstance(request, ChoiceRequest)
        wanted = [alone(stateful.model, request, branch)[0] for branch in request.branches]
        assert outcome.log_likelihoods == pytest.approx(wanted, abs=1e-2)


def test_a_window_narrower_than_a_request_is_heeded(tiny_backbone: Backbone) -> None:
    requests = requests_of(
        tiny_backbone, kind="multiple_choice", source="general-knowledge", limit=4
    )
    assert within_window(BatchLayout(), scorer_of(tiny_backbone), requests) == BatchLayout()
    tiny_backbone.model.config.sliding_window = 8
    assert within_window(BatchLayout(), scorer_of(tiny_backbone), requests) == SLOW


def test_what_requests_share_ends_before_what_is_scored() -> None:
    common = tuple(range(100, 130))
    choices = [ChoiceRequest((*common, n), (Branch((1,), 1), Branch((2,), 1))) for n in range(3)]
    assert shared_prefix(choices) == common
    same = [ChoiceRequest(common, (Branch((n,), 1),)) for n in range(3)]
    assert (
        shared_prefix(same) == common[:-1]
    )  # the first scored token is predicted from the last one
    assert shared_prefix(choices[:1]) == ()
    assert shared_prefix([ChoiceRequest((1, 2, n), ()) for n in range(3)]) == ()  # too short
    assert shared_prefix([GenerationRequest((*common, n), 4) for n in range(2)]) == common
    from lora_kit.data.supervision import IGNORE_INDEX, Example

    losses: list[Request] = [
        LossRequest(Example((*common, n), (*[IGNORE_INDEX] * 29, common[29], n))) for n in range(2)
    ]
    assert shared_prefix(losses) == common[:28]


def test_batches_are_within_the_budget_and_lose_nothing() -> None:
    lengths = [10 + number * 7 % 90 for number in range(70)]
    ordered = sorted(range(70), key=lambda n: -lengths[n])
    batches = batches_by_length(ordered, lengths.__getitem__, 200)
    assert sorted(n for batch in batches for n in batch) == list(range(70))
    assert all(max(lengths[n] for n in batch) * len(batch) <= 200 for batch in batches)
    longest = [max(lengths[n] for n in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_an_item_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    assert batches_by_length([0], lambda _: 999, 100) == ((0,),)


@torch.inference_mode()
def test_a_prefix_that_is_copied_to_each_item_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(prefix: int) -> list[int]:
        shared = tuple(range(5, 5 + prefix))
        requests = [ChoiceRequest((*shared, 900 + n, n), (Branch((7, 8), 2),)) for n in range(20)]
        items = [SimpleNamespace(id=str(n), request=one) for n, one in enumerate(requests)]
        task: Any = SimpleNamespace(items=items)
        return [len(batch) for batch in batching.plan_batches(task, 1000, range(len(items)))]

    assert batches(100) == [20]
    monkeypatch.setattr(batching, "PREFIX_TOKENS", {"cpu": 800})
    assert batches(100) == [8, 8, 4]
    assert batches(1000) == [1] * 20
    assert batches(0) == [20]


def test_bits_per_byte_count_the_bytes_of_the_text(real_backbone: Backbone) -> None:
    spec = TaskSpec(name="t", kind="loss", source="python-reference", limit=1, max_length=96)
    task = build_task(spec, real_backbone.tokenizer, seed=0)
    (item,) = task.items
    (outcome,) = compute_outcomes(scorer_of(real_backbone), [item.request], BatchLayout())
    graded = task.grade(item, outcome)
    assert graded.score is not None
    assert isinstance(item.request, LossRequest)
    nats = graded.score * item.request.example.supervised
    assert graded.measures["nats"] == pytest.approx(nats)
    assert graded.measures["bits_per_byte"] == pytest.approx(nats / math.log(2) / item.scored_bytes)
    assert item.scored_bytes < len(item.reference.encode())  # cut at max_length
