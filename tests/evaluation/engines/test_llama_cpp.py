"""The engine of llama.cpp on a stand-in for its server, and on the real one."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer, compute_outcomes
from lora_kit.evaluation.engines.llama_cpp import LlamaCppEngine
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.requests import GenerationRequest, Request
from lora_kit.evaluation.suite import Suite
from lora_kit.modeling.generation import stop_token_ids
from lora_kit.runtime.errors import EvaluationError
from tests.standins.programs import LLAMA_SERVER, write_llama_server

ROOT = Path(__file__).parents[3]
SUITE = Suite.model_validate(
    {
        "name": "keep",
        "role": "retention",
        "tasks": [
            {"name": "quiz", "kind": "multiple_choice", "source": "reasoning", "limit": 6}
            | {"margin": 0.1},
            {"name": "prose", "kind": "loss", "source": "python-reference", "limit": 3}
            | {"max_length": 24, "margin": 1},
            {"name": "follow", "kind": "instructions", "source": "instructions", "limit": 4}
            | {"max_new_tokens": 5, "margin": 0.9},
        ],
    }
)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Return the stand-in as a program."""
    return write_llama_server(tmp_path)


def requests_of(backbone: Backbone, task: str) -> list[Request]:
    [work] = [one for one in plan_work([SUITE], backbone) if one.task.spec.name == task]
    return [item.request for item in work.task.items]


def engine(path: Path, program: Path, backbone: Backbone) -> LlamaCppEngine:
    stops = stop_token_ids(backbone)
    return LlamaCppEngine(path, program, backbone.tokenizer, stops, context=512, threads=1)


def ours(backbone: Backbone, requests: Sequence[Request]) -> list[Outcome]:
    scorer = Scorer(backbone.model, backbone.tokenizer, stop_token_ids(backbone))
    return compute_outcomes(scorer, requests, BatchLayout(tree=False, prefix=False), None)


def test_outcomes_are_those_of_the_model(
    program: Path, tiny: Path, tiny_backbone: Backbone
) -> None:
    with engine(tiny / "model.safetensors", program, tiny_backbone) as llama:
        for task in SUITE.tasks:
            requests = requests_of(tiny_backbone, task.name)
            there, here = llama.answer(requests), ours(tiny_backbone, requests)
            assert [one.text for one in there] == [one.text for one in here]
            assert [one.greedy for one in there] == [one.greedy for one in here]
            assert [one.cut_off for one in there] == [one.cut_off for one in here]
            for one, other in zip(there, here, strict=True):
                assert one.log_likelihoods == pytest.approx(other.log_likelihoods, abs=1e-3)
            assert any(one.log_likelihoods or one.text for one in there)


def test_a_busy_server_is_asked_again(
    program: Path, tiny: Path, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "busy")
    request = GenerationRequest((5, 6, 7), 3)
    with engine(tiny / "model.safetensors", program, tiny_backbone) as llama:
        outcomes = llama.answer([request] * 5)
    assert [(one.error, one.tokens) for one in outcomes] == [("", 6)] * 5


def test_a_server_that_crashes_is_started_more_safely(
    program: Path,
    tiny: Path,
    tiny_backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """llama.cpp crashes where the processor says that it has AMX and the machine forbids it."""
    monkeypatch.setenv("FAULT", "crash")
    with engine(tiny / "model.safetensors", program, tiny_backbone) as llama:
        [outcome] = llama.answer([GenerationRequest((5, 6, 7), 3)])
    assert outcome.tokens == 6
    assert "llama.cpp crashed; starting it again with --no-repack" in capsys.readouterr().err


def test_a_proxy_of_the_environment_is_not_asked(
    program: Path, tiny: Path, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "none")
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with engine(tiny / "model.safetensors", program, tiny_backbone) as llama:
        [outcome] = llama.answer([GenerationRequest((5, 6, 7), 3)])
    assert outcome.tokens == 6


def test_a_request_that_is_refused_has_no_score(
    program: Path, tiny: Path, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "long")
    short, long = (GenerationRequest((5, 6, 7) * n, 3) for n in (2, 20))
    with engine(tiny / "model.safetensors", program, tiny_backbone) as llama:
        outcomes = llama.answer([short, long])
    assert [one.error for one in outcomes] == [
        "",
        "llama.cpp: status 400: the request exceeds the context",
    ]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("load", r"does not load this model \(got status 1\): .*unknown model architecture"),
        ("die", r"does not answer .* Fix: start it again, and repeat the command"),
        ("tokens", r"answers with another token"),
        ("vocabulary", r"has other tokens than the backbone"),
        ("no vocabulary", r"has other tokens .*no text: status 400"),
    ],
)
def test_a_server_that_fails_is_named_and_ended(
    fault: str,
    reason: str,
    program: Path,
    tiny: Path,
    tiny_backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAULT", fault)
    llama = engine(tiny / "model.safetensors", program, tiny_backbone)
    with pytest.raises(EvaluationError, match=reason), llama:
        llama.answer(requests_of(tiny_backbone, "quiz"))
    assert llama.has_ended


KILLED = """
import os, sys, time
from pathlib import Path
from lora_kit.evaluation.engines.llama_cpp import LlamaCppEngine
engine = LlamaCppEngine(Path(sys.argv[1]), Path(sys.argv[2]), None, (), 512, 1)
with engine:
    print("started", flush=True)
    time.sleep(60)
"""


def test_the_server_ends_with_a_process_that_is_killed(
    program: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "none")
    path = tiny / "model.safetensors"
    owner = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), str(program)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "started\n"
    children = psutil.Process(owner.pid).children(recursive=True)
    assert any(LLAMA_SERVER in " ".join(child.cmdline()) for child in children)
    owner.kill()
    owner.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
