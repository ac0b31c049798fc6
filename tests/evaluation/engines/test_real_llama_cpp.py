"""The real model as files of llama.cpp, answered by the real server."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_kit.backbone import load as backbones
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer, compute_outcomes
from lora_kit.evaluation.engines.llama_cpp import PROGRAM, LlamaCppEngine
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.requests import Request
from lora_kit.evaluation.suite import Suite
from lora_kit.merging.exporting.export import export
from lora_kit.modeling.generation import stop_token_ids
from lora_kit.recipe.backbone import BackboneSpec

pytestmark = pytest.mark.slow
PROGRAMS = Path(sys.prefix) / "llama.cpp" / "bin"
SUITE = Suite.model_validate(
    {
        "name": "keep",
        "role": "retention",
        "tasks": [
            {"name": "quiz", "kind": "multiple_choice", "source": "reasoning", "limit": 60}
            | {"margin": 0.1},
            {"name": "prose", "kind": "loss", "source": "python-reference", "limit": 6}
            | {"max_length": 96, "margin": 1},
            {"name": "follow", "kind": "instructions", "source": "instructions", "limit": 12}
            | {"max_new_tokens": 24, "margin": 0.9},
        ],
    }
)


@pytest.fixture(scope="module")
def backbone(smollm: Path) -> Backbone:
    if not (PROGRAMS / PROGRAM).exists():
        pytest.skip("needs llama.cpp: make .venv/llama.cpp/.built")
    spec = BackboneSpec(model=str(smollm), quantization="none", dtype="float32")
    return backbones.load(resolve(spec), spec)


@pytest.fixture(scope="module")
def asked(backbone: Backbone) -> dict[str, list[Request]]:
    return {
        work.task.spec.name: [item.request for item in work.task.items]
        for work in plan_work([SUITE], backbone)
    }


@pytest.fixture(scope="module")
def ours(backbone: Backbone, asked: dict[str, list[Request]]) -> dict[str, list[Outcome]]:
    scorer = Scorer(backbone.model, backbone.tokenizer, stop_token_ids(backbone))
    layout = BatchLayout(tree=False, prefix=False)
    with torch.inference_mode():
        return {task: compute_outcomes(scorer, one, layout, None) for task, one in asked.items()}


def theirs(
    path: Path, backbone: Backbone, asked: dict[str, list[Request]]
) -> dict[str, list[Outcome]]:
    program, stops = PROGRAMS / PROGRAM, stop_token_ids(backbone)
    with LlamaCppEngine(path, program, backbone.tokenizer, stops, 1024, 2) as engine:
        return {task: engine.answer(requests) for task, requests in asked.items()}


def likelihoods(outcomes: list[Outcome]) -> np.ndarray:
    return np.array([nats for one in outcomes for nats in one.log_likelihoods])


def chosen(outcomes: list[Outcome]) -> list[int]:
    return [int(np.argmax(one.log_likelihoods)) for one in outcomes]


def test_f16_answers_as_the_model_does(
    smollm: Path,
    backbone: Backbone,
    asked: dict[str, list[Request]],
    ours: dict[str, list[Outcome]],
    tmp_path: Path,
) -> None:
    export(smollm, "gguf", tmp_path / "model.gguf", "f16")
    found = theirs(tmp_path / "model.gguf", backbone, asked)
    for task in ("quiz", "prose"):
        distance = np.abs(likelihoods(found[task]) - likelihoods(ours[task]))
        # 10 bits of mantissa: some hundredths of a nat over a choice or a text.
        assert distance.mean() < 0.05
        assert distance.max() < 0.3
    same = [a == b for a, b in zip(chosen(found["quiz"]), chosen(ours["quiz"]), strict=True)]
    assert sum(same) >= 58
    texts = [a.text == b.text for a, b in zip(found["follow"], ours["follow"], strict=True)]
    assert sum(texts) >= 10


def test_four_bits_of_llama_cpp_answer_alike(
    smollm: Path,
    backbone: Backbone,
    asked: dict[str, list[Request]],
    ours: dict[str, list[Outcome]],
    tmp_path: Path,
) -> None:
    result = export(smollm, "gguf", tmp_path / "q4.gguf", "q4_k_m", llama_cpp=PROGRAMS)
    assert result.passed
    found = theirs(tmp_path / "q4.gguf", backbone, {"quiz": asked["quiz"]})
    same = [a == b for a, b in zip(chosen(found["quiz"]), chosen(ours["quiz"]), strict=True)]
    assert sum(same) >= 45
    assert np.abs(likelihoods(found["quiz"]) - likelihoods(ours["quiz"])).max() > 0.1
