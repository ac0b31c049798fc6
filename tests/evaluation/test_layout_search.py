"""Layouts that score as each item alone are accepted; others are refused, in every dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.evaluation.engine import choices, scoring
from lora_kit.evaluation.engine.layout_search import LAYOUTS, _probe, find_layout
from lora_kit.evaluation.engine.prefix import shared_prefix
from lora_kit.evaluation.engine.rounding import ProbeScores, RoundingBound, score_probes
from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer
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
from lora_kit.recipe.backbone import BackboneSpec
from tests.conftest import ALIAS

TREE, ROWS = BatchLayout(), BatchLayout(tree=False)
HALF = ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)]


@dataclass(frozen=True)
class Measured:
    """Requests of a task on the real model, with the bound of their probes."""

    scorer: Scorer
    requests: list[Request]
    prefix: tuple[int, ...]
    probes: list[Request]
    bound: RoundingBound

    def score(self, layout: BatchLayout) -> ProbeScores:
        prefix = self.prefix if layout.prefix else ()
        return score_probes(self.scorer, self.probes, layout, prefix)


def scorer_of(backbone: Backbone) -> Scorer:
    return Scorer(backbone.model.eval(), backbone.tokenizer, stop_token_ids(backbone))


def _two(request: Request) -> Request:
    """Return a request of two continuations at most, which takes less time."""
    if isinstance(request, ChoiceRequest):
        return replace(request, branches=request.branches[:2])
    return request


@torch.inference_mode()
def measured(scorer: Scorer, **fields: Any) -> Measured:
    spec = TaskSpec.model_validate({"name": "t", **fields})
    task = build_task(spec, scorer.tokenizer, seed=1)
    requests = sorted((_two(item.request) for item in task.items), key=lambda one: one.length)
    prefix = shared_prefix(requests)
    assert 0 < len(prefix) <= 48
    chosen = [requests[0], requests[-1]]
    probes = [_probe(request, 0, len(prefix)) for request in chosen]
    return Measured(scorer, chosen, prefix, probes, RoundingBound.measure(scorer, probes))


@pytest.fixture(scope="module", params=HALF)
def scorer(request: pytest.FixtureRequest) -> Scorer:
    spec = BackboneSpec(model=ALIAS, quantization="none", dtype=request.param)
    return scorer_of(load(resolve(spec), spec))


@pytest.fixture(scope="module")
def quiz(scorer: Scorer) -> Measured:
    source = {"source": "general-knowledge", "limit": 8, "shots": 1}
    return measured(scorer, kind="multiple_choice", **source)


@pytest.fixture(scope="module")
def texts(scorer: Scorer) -> Measured:
    return measured(scorer, kind="instructions", source="instructions", limit=8, max_new_tokens=8)


def moved(tree: Any, prompt: int) -> Any:
    """Move each continuation by one position away from its prompt."""
    return replace(tree, positions=[p if p < prompt else p + 1 for p in tree.positions])


def leaking(tree: Any, _prompt: int) -> Any:
    """Let each continuation see those before it."""
    return replace(tree, visible=torch.ones_like(tree.visible).tril())


def counted_on(tree: Any, _prompt: int) -> Any:
    """Count positions along the row, across continuations."""
    return replace(tree, positions=[tree.positions[0] + n for n in range(len(tree.positions))])


@contextmanager
def broken_tree(change: Callable[[Any, int], Any]) -> Iterator[None]:
    right = choices._tree
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            choices, "_tree", lambda r, skipped: change(right(r, skipped), len(r.prompt_ids))
        )
        yield


@contextmanager
def broken_rows(shift: int = 0, is_padding_seen: bool = False) -> Iterator[None]:
    right = scoring.pad_examples

    def pad(examples: Any, pad_token_id: int) -> dict[str, torch.Tensor]:
        batch = right(examples, pad_token_id)
        batch["position_ids"] += shift
        if is_padding_seen:
            batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "pad_examples", pad)
        yield


@torch.inference_mode()
@pytest.mark.parametrize("change", [moved, leaking, counted_on])
def test_a_tree_with_wrong_positions_or_mask_is_refused(quiz: Measured, change: Any) -> None:
    for layout in (TREE, BatchLayout(prefix=False)):
        assert quiz.bound.explains(quiz.score(layout)), layout
        with broken_tree(change):
            assert not quiz.bound.explains(quiz.score(layout)), layout


@torch.inference_mode()
@pytest.mark.parametrize("shift", [1, -1])
def test_rows_after_a_prefix_at_a_position_too_far_or_too_near_are_refused(
    quiz: Measured, texts: Measured, shift: int
) -> None:
    for task in (quiz, texts):
        assert task.bound.explains(task.score(ROWS))
        with broken_rows(shift):
            assert not task.bound.explains(task.score(ROWS))
            # A text alone reads the same at any position.
            assert task.bound.explains(task.score(LAYOUTS[-1]))


@torch.inference_mode()
def test_rows_that_see_their_padding_are_refused(quiz: Measured, texts: Measured) -> None:
    for task in (quiz, texts):
        for layout in (ROWS, LAYOUTS[-1]):
            assert task.bound.explains(task.score(layout))
            with broken_rows(is_padding_seen=True):
                assert not task.bound.explains(task.score(layout))


def test_the_search_takes_the_fastest_layout_that_is_right(quiz: Measured) -> None:
    assert find_layout(quiz.scorer, quiz.requests, quiz.prefix) == TREE
    with broken_tree(moved):
        assert find_layout(quiz.scorer, quiz.requests, quiz.prefix) == ROWS


def test_a_model_that_sees_the_padding_of_a_batch_is_named(
    tiny_backbone: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    requests: list[Request] = [
        LossRequest(Example(ids, (IGNORE_INDEX, *ids[1:]))) for ids in ((5, 6, 7), tuple(range(40)))
    ]
    scorer = scorer_of(tiny_backbone)
    assert find_layout(scorer, requests, ()) == TREE
    assert "rounding" not in capsys.readouterr().err
    with broken_rows(is_padding_seen=True):
        assert find_layout(scorer, requests, ()) == LAYOUTS[-1]
    assert "items score otherwise in a batch than alone" in capsys.readouterr().err


def test_long_items_are_tried(tiny_backbone: Backbone) -> None:
    """A layout that is wrong on the longest item alone."""
    branches = (Branch((7, 8, 9), 3), Branch((10, 11), 2))
    requests: list[Request] = [
        ChoiceRequest(tuple(range(5, 5 + n)), branches) for n in (4, 5, 6, 7, 90)
    ]

    def wrong_on_long(tree: Any, prompt: int) -> Any:
        return leaking(tree, prompt) if prompt > 50 else tree

    scorer = scorer_of(tiny_backbone)
    assert find_layout(scorer, requests, ()).tree
    with broken_tree(wrong_on_long):
        assert not find_layout(scorer, requests, ()).tree


def test_long_items_that_exceed_the_memory_together_are_left_out(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Request] = [
        LossRequest(Example(tuple(range(n)), (IGNORE_INDEX, *range(1, n)))) for n in (4, 5, 6, 60)
    ]
    right = scoring.pad_examples

    def pad(examples: Any, pad_token_id: int) -> dict[str, torch.Tensor]:
        if len(examples) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(examples, pad_token_id)

    monkeypatch.setattr(scoring, "pad_examples", pad)
    assert find_layout(scorer_of(tiny_backbone), requests, ()) == TREE


@pytest.mark.parametrize(("rows", "layout"), [(1, TREE), (0, LAYOUTS[-1])])
def test_fewer_items_are_tried_until_they_fit_into_memory(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch, rows: int, layout: BatchLayout
) -> None:
    requests: list[Request] = [
        LossRequest(Example(tuple(range(n)), (IGNORE_INDEX, *range(1, n)))) for n in (4, 5, 6, 60)
    ]
    right = scoring.pad_examples

    def pad(examples: Any, pad_token_id: int) -> dict[str, torch.Tensor]:
        if len(examples) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(examples, pad_token_id)

    monkeypatch.setattr(scoring, "pad_examples", pad)
    assert find_layout(scorer_of(tiny_backbone), requests, ()) == layout


def test_probes_compare_many_tokens_after_the_prefix() -> None:
    ids = tuple(range(100, 400))
    only_last = (*[IGNORE_INDEX] * 299, 399)
    probe = _probe(LossRequest(Example(ids, only_last)), 20, 30)
    assert isinstance(probe, LossRequest)
    assert probe.example.input_ids == ids[20:]
    compared = [n for n, label in enumerate(probe.example.labels) if label != IGNORE_INDEX]
    # Tokens after the first of the row; the prefix is 10 tokens long now.
    assert compared == [*range(11, 75), *range(216, 280)]
    probe = _probe(GenerationRequest((1, 2, 3), 5), 0, 2)
    assert probe == LossRequest(Example((1, 2, 3, 3), (*[IGNORE_INDEX] * 3, 3)))
    many = tuple(Branch((n, n + 1), 1) for n in range(20))
    probe = _probe(ChoiceRequest((1, 2), many), 0, 0)
    assert isinstance(probe, ChoiceRequest)
    assert [one.input_ids[0] for one in probe.branches] == [0, 1, 2, 3, 16, 17, 18, 19]
    assert {one.scored for one in probe.branches} == {2}
