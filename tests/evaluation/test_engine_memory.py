"""Evaluation of what does not fit into memory: halved, read one by one, or named."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.arms import models
from lora_kit.evaluation.engine import arm_task, run
from lora_kit.evaluation.engine import model_answers as engine
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.evaluation.harness import (
    Evaluation,
)
from lora_kit.evaluation.requests import ChoiceRequest
from lora_kit.modeling.drift import prompt_drift
from lora_kit.runtime.errors import EvaluationError
from tests.evaluation.engine_runs import KEEP, evaluation_of, scores


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def evaluate(tiny_backbone: Backbone, tmp_path: Path) -> Callable[..., Evaluation]:
    return evaluation_of(tiny_backbone, tmp_path)


def fitting(real: Callable[..., Any], most: int, sizes: list[int]) -> Callable[..., Any]:
    """Return a function of a model and a batch for which more than `most` rows do not fit."""

    def small(model: Any, batch: Sequence[Any], *rest: Any) -> Any:
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        sizes.append(len(batch))
        return real(model, batch, *rest)

    return small


def test_what_does_not_fit_into_memory_is_halved_for_every_arm(
    evaluate: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(b=1.0, to="whole")
    sizes: list[int] = []
    monkeypatch.setattr(engine, "compute_outcomes", fitting(engine.compute_outcomes, 5, sizes))
    halved = evaluate(b=1.0, to="halved", no_cache=True)
    assert max(sizes) <= 5
    of_whole = scores(whole.read_entries())
    for where, score in scores(halved.read_entries()).items():
        assert score == pytest.approx(of_whole[where], abs=1e-3)


def test_a_prefix_that_does_not_fit_into_memory_is_read_with_each_item(
    evaluate: Callable[..., Evaluation],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = evaluate(b=1.0, suites=[KEEP], to="whole")
    real, encoded, used = engine.encode_prefix, [], []

    def full_for_the_adapter(*arguments: Any) -> Any:
        encoded.append(arguments)
        if len(encoded) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments)

    real_outcomes = engine.compute_outcomes

    def watched(scorer: Any, requests: Any, layout: Any, prefix: Any, *others: Any) -> Any:
        if isinstance(requests[0], ChoiceRequest):
            used.append((layout.prefix, prefix))
        return real_outcomes(scorer, requests, layout, prefix, *others)

    monkeypatch.setattr(engine, "encode_prefix", full_for_the_adapter)
    monkeypatch.setattr(engine, "compute_outcomes", watched)
    found = evaluate(b=1.0, suites=[KEEP], to="full", no_cache=True)
    # The base's prefix fitted, and is not used either.
    assert len(encoded) == 2
    assert set(used) == {(False, None)}
    of_whole = scores(whole.read_entries())
    for where, score in scores(found.read_entries()).items():
        assert score == pytest.approx(of_whole[where], abs=1e-3)
    assert "keep/quiz: the tokens that all items begin with do not fit" in capsys.readouterr().err


def test_drift_that_does_not_fit_into_memory_is_halved(
    evaluate: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(b=1.0, suites=[KEEP], to="whole")
    sizes: list[int] = []
    monkeypatch.setattr(arm_task, "prompt_drift", fitting(prompt_drift, 3, sizes))
    halved = evaluate(b=1.0, suites=[KEEP], to="halved")
    assert max(sizes) == 2
    of_whole, of_halved = scores(whole.read_entries()), scores(halved.read_entries())
    assert of_halved.keys() == of_whole.keys()
    for where, score in of_halved.items():
        assert score == pytest.approx(of_whole[where], rel=1e-3, abs=1e-6)


def test_an_item_that_never_fits_is_named(
    evaluate: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "compute_outcomes", full)
    with pytest.raises(
        EvaluationError, match=r"item \S+ alone does not fit into memory \(got \d+ tokens\)"
    ):
        evaluate()


def test_another_error_is_not_taken_for_a_lack_of_memory(
    evaluate: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(engine, "compute_outcomes", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        evaluate()


def test_a_model_that_does_not_fit_names_its_arms(
    evaluate: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    loads = models._on_backbone
    monkeypatch.setattr(
        models, "_on_backbone", lambda *given: dataclasses.replace(loads(*given), load=too_large)
    )
    wrong = r"the model of base and adapter does not fit into memory \(CUDA .*\)\. Fix: end other"
    with pytest.raises(EvaluationError, match=wrong):
        evaluate()
    # On GPUs, more of them may do.
    arms = (Arm("merged", "", nullcontext),)
    gpu = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(run, "process_state", lambda: gpu)
    with pytest.raises(EvaluationError, match=r"the model of merged .*Fix: spread it .*--gpus\)"):
        run._load(LoadedArms(too_large, arms))
