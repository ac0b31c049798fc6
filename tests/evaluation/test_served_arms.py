"""Models of servers as arms, and vLLM as the engine, on a stand-in for a server."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lora_kit.evaluation.agreement import (
    OtherEngine,
    agreement_sentences,
    measure_agreement,
)
from lora_kit.evaluation.arms.vllm import answered_by_vllm, served_adapter
from lora_kit.evaluation.harness import Evaluation
from lora_kit.evaluation.ledger import read_ledger
from lora_kit.evaluation.verdict_file import check_verdict, read_suites
from lora_kit.pipeline.evaluation import evaluate
from lora_kit.pipeline.shipped_arms import Programs
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import EvaluationError, RecipeError
from tests.evaluation.changing_adapter import write_changing_adapter
from tests.standins.completions_server import StandIn
from tests.standins.models import log_probabilities
from tests.standins.programs import write_vllm

SUITE: dict[str, Any] = {
    "name": "keep",
    "role": "retention",
    "tasks": [
        {"name": "quiz", "kind": "multiple_choice", "source": "reasoning", "limit": 12}
        | {"margin": 0.4},
        {"name": "prose", "kind": "loss", "source": "python-reference", "limit": 3}
        | {"max_length": 24, "margin": 1},
        {"name": "follow", "kind": "instructions", "source": "instructions", "limit": 4}
        | {"max_new_tokens": 3, "margin": 0.9},
    ],
}
Serve = Callable[..., str]


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_changing_adapter(tiny, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def serve(tiny: Path, adapter: Path) -> Iterator[Serve]:
    """Yield a function that starts the stand-in with a fault, and returns its address."""
    with ExitStack() as running:

        def start(fault: str = "", key: str = "") -> str:
            models = (str(tiny), str(adapter), log_probabilities)
            standin = StandIn(*models, adapter_name="mine", fault=fault, key=key)
            server = running.enter_context(standin.server(0))
            thread = Thread(target=server.serve_forever)
            thread.start()
            running.callback(thread.join)
            running.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}/v1"

        yield start


@pytest.fixture
def judge(adapter: Path, tiny: Path, tmp_path: Path) -> Callable[..., Evaluation]:
    """Return a function that evaluates the adapter with an arm, or with an engine."""
    path = tmp_path / "suite.yaml"
    backbone = BackboneSpec.model_validate({"model": str(tiny), "dtype": "float32"})

    def run(arms: list[str], tasks: slice = slice(None), **programs: Any) -> Evaluation:
        path.write_text(yaml.safe_dump({**SUITE, "tasks": SUITE["tasks"][tasks]}))
        options = Programs(**programs)
        return evaluate(adapter, [str(path)], backbone, tmp_path / "out", arms, programs=options)

    return run


def scores(evaluation: Evaluation, arm: str) -> dict[tuple[str, str], Any]:
    ledger = read_ledger(evaluation.directory / "ledger.parquet")
    return {(one.task, one.item): one.score for one in ledger if one.arm == arm}


@pytest.mark.parametrize("fault", ["", "echo", "slow"])
def test_a_served_adapter_has_the_scores_of_the_adapter(
    fault: str, serve: Serve, judge: Callable[..., Evaluation]
) -> None:
    done = judge([f"served={serve(fault)}"], served_model="mine")
    assert list(done.verdict.files) == ["served=mine"]
    here, there = scores(done, "adapter"), scores(done, "served=mine")
    assert here.keys() == there.keys()
    assert list(there.values()) == pytest.approx(list(here.values()), abs=1e-4)
    assert scores(done, "base") != here
    assert check_verdict(done.directory).verdict == done.verdict
    page = (done.directory / "report.html").read_text()
    assert "answered by the server http" in page
    assert "Agreement of engines" in page
    assert {(one.arm, one.other) for one in done.agreement} == {("served=mine", "adapter")}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("ignores", r"answers like the base, not like the adapter .*--served-model"),
        ("half", r"does not answer .* what was answered is not asked again"),
        ("tokens", r"answers with other tokens \(got none for token"),
        ("adds", r"reads other tokens than were sent"),
        ("vocabulary", r"has other tokens than the backbone"),
        ("texts", r"does not complete prompts of token ids \(got status 400: prompt has to be"),
        ("generates", r"gives no log-likelihoods of given texts, which keep/quiz, keep/prose need"),
    ],
)
def test_a_server_that_does_otherwise_is_refused(
    fault: str,
    reason: str,
    serve: Serve,
    judge: Callable[..., Evaluation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lora_kit.evaluation.engines.served.TRIES", 2)
    url = serve(fault)
    with pytest.raises(EvaluationError, match=reason):
        judge([f"served={url}"], served_model="mine")


def test_results_before_a_server_stopped_are_reused(
    serve: Serve,
    judge: Callable[..., Evaluation],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("lora_kit.evaluation.engines.served.TRIES", 2)
    with pytest.raises(EvaluationError, match="does not answer"):
        judge([f"served={serve('half')}"], served_model="mine")
    capsys.readouterr()
    done = judge([f"served={serve()}"], served_model="mine")
    assert "reusing" in capsys.readouterr().err
    assert len(scores(done, "served=mine")) == 19


def test_a_server_without_log_likelihoods_answers_what_is_generated(
    serve: Serve, judge: Callable[..., Evaluation]
) -> None:
    done = judge([f"served={serve('generates')}"], slice(2, None), served_model="mine")
    assert scores(done, "served=mine") == scores(done, "adapter")


def test_an_item_that_a_server_refuses_has_no_score(
    serve: Serve, judge: Callable[..., Evaluation]
) -> None:
    done = judge([f"served={serve('one')}"], slice(0, 1), served_model="mine")
    [task] = done.verdict.suites[0].tasks
    assert task.files[0].missing == 1
    assert task.files[0].decision != "PASS"
    [lost] = [
        one
        for one in read_ledger(done.directory / "ledger.parquet")
        if one.arm == "served=mine" and one.score is None
    ]
    assert "too long for this server" in lost.output


def test_a_key_comes_from_a_variable_and_is_not_stored(
    serve: Serve, judge: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(key="hidden-key")
    with pytest.raises(EvaluationError, match=r"status 401 .*wrong key"):
        judge([f"served={url}"], served_model="mine")
    with pytest.raises(EvaluationError, match=r"not set .got MY_KEY"):
        judge([f"served={url}"], served_model="mine", api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "hidden-key")
    done = judge([f"served={url}"], served_model="mine", api_key_env="MY_KEY")
    written = [path for path in done.directory.rglob("*") if path.is_file()]
    assert written
    assert not any(b"hidden-key" in path.read_bytes() for path in written)


def test_arms_that_name_no_model_are_refused(
    serve: Serve, judge: Callable[..., Evaluation]
) -> None:
    cases: list[tuple[list[str], dict[str, str], str]] = [
        (["served=127.0.0.1:8000"], {}, "not the address of a server"),
        ([], {"served_model": "mine"}, "--served-model: has no effect without a served model"),
        (["served=http://a", "served=http://b"], {}, "one served model at a time"),
        ([f"served={serve()}"], {}, r"does not have one model \(got base, mine\)"),
    ]
    for arms, programs, reason in cases:
        with pytest.raises(RecipeError, match=reason):
            judge(arms, **programs)


def test_vllm_answers_for_base_and_adapter(
    judge: Callable[..., Evaluation], tmp_path: Path
) -> None:
    by_transformers = judge([])
    here = {arm: scores(by_transformers, arm) for arm in ("base", "adapter")}
    done = judge([], engine="vllm", vllm=write_vllm(tmp_path / "environment"))
    for arm, expected in here.items():
        answered = scores(done, arm)
        assert answered.keys() == expected.keys()
        assert list(answered.values()) == pytest.approx(list(expected.values()), abs=1e-4)
    assert "vllm 0.0" in (done.directory / "report.html").read_text()


def test_the_agreement_of_engines_is_measured_on_the_same_items(
    judge: Callable[..., Evaluation], tmp_path: Path
) -> None:
    by_transformers = judge([])
    done = judge([], engine="vllm", vllm=write_vllm(tmp_path / "environment"))
    assert done.agreement == []  # both had one output directory: nothing is left to compare with
    here, there = tmp_path / "out", tmp_path / "there"
    here.rename(there)
    judge([])
    suites = read_suites(here)
    found = measure_agreement(here, suites, OtherEngine("vllm", there))
    assert {(one.task, one.arm, one.items) for one in found} == {
        (task, arm, items)
        for task, items in {"quiz": 12, "prose": 3, "follow": 4}.items()
        for arm in ("base", "adapter")
    }
    by_task = {(one.task, one.arm): one for one in found}
    assert 0 < (by_task["quiz", "adapter"].max_nats or 0) < 1e-3
    assert 0 < (by_task["prose", "base"].max_nats or 0) < 1e-3
    assert by_task["follow", "base"].max_nats is None
    assert all(one.changed == 0 and one.here == pytest.approx(one.there) for one in found)
    assert agreement_sentences(found)[0].startswith(
        "base compared with vllm: 0 of 19 items have another score; log-likelihoods differ by at"
    )
    assert by_transformers.agreement == []
    verdict = json.loads((there / "verdict.json").read_text())
    for other in ({"adapter": "another"}, {"suite_digests": {"keep": "another"}}):
        (there / "verdict.json").write_text(json.dumps(verdict | other))
        assert measure_agreement(here, suites, OtherEngine("vllm", there)) == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("ignores", "vLLM, .* answers for the adapter as for the base"),
        ("half", "does not answer"),
        ("vocabulary", "has other tokens than the backbone"),
    ],
)
def test_a_vllm_that_does_otherwise_is_refused(
    fault: str,
    reason: str,
    judge: Callable[..., Evaluation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAULT", fault)
    with pytest.raises(EvaluationError, match=reason):
        judge([], engine="vllm", vllm=write_vllm(tmp_path / "environment"))


def test_arms_that_vllm_cannot_answer_are_refused(
    tmp_path: Path, judge: Callable[..., Evaluation]
) -> None:
    with pytest.raises(EvaluationError, match="--vllm: no environment of Python in this folder"):
        judge([], engine="vllm", vllm=tmp_path)
    environment = write_vllm(tmp_path / "environment")
    with pytest.raises(RecipeError, match="--vllm: has no effect without the engine"):
        judge([], vllm=environment)
    with pytest.raises(RecipeError, match="--llama-cpp: has no effect without a GGUF file"):
        judge([], llama_cpp=tmp_path)
    with pytest.raises(EvaluationError, match="arm scratch: vLLM answers no such arm"):
        judge(["scratch"], engine="vllm", vllm=environment)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"use_dora": True}, "got use_dora"),
        ({"peft_type": "OFT"}, "got peft_type OFT"),
        ({"target_parameters": ["experts.down_proj"]}, "got target_parameters"),
        ({}, "got changes of the head or the embedding"),
    ],
)
def test_adapters_that_vllm_cannot_apply_are_refused(
    changed: dict[str, Any], reason: str, adapter: Path, tmp_path: Path
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | changed))
    weights = load_file(adapter / "adapter_model.safetensors")
    if not changed:
        weights |= {f"base_model.model.lm_head.lora_{one}.weight": torch.ones(4, 4) for one in "AB"}
    save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(EvaluationError, match=reason):
        served_adapter(tmp_path)


def test_arms_of_a_recipe_that_vllm_cannot_answer_are_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert answered_by_vllm(["base", "scratch", "merged", "nf4"]) == ["base", "merged"]
    assert "vLLM answers no scratch or nf4" in capsys.readouterr().err
    assert answered_by_vllm(["base", "adapter"]) == ["base", "adapter"]
    assert capsys.readouterr().err == ""
