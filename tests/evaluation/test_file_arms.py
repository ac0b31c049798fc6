"""Exported files as arms, on a stand-in for llama.cpp's server."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from lora_kit.evaluation.arms.files import parse_files
from lora_kit.evaluation.arms.gguf_controls import matched_controls
from lora_kit.evaluation.ledger import read_ledger
from lora_kit.evaluation.verdict_file import check_verdict
from lora_kit.pipeline.evaluation import evaluate
from lora_kit.pipeline.shipped_arms import Programs
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import EvaluationError, MergeError, RecipeError
from tests.standins.programs import write_llama_server

SUITE: dict[str, Any] = {
    "name": "keep",
    "role": "retention",
    "tasks": [
        {"name": "quiz", "kind": "multiple_choice", "source": "reasoning", "limit": 30}
        | {"margin": 0.4},
        {"name": "follow", "kind": "instructions", "source": "instructions", "limit": 4}
        | {"max_new_tokens": 3, "margin": 0.9},
    ],
}


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    """Return the stand-in as a program in a folder."""
    return Programs(llama_cpp=write_llama_server(tmp_path / "programs").parent)


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    """Return an adapter without effect: its B is zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> Path:
    """Return a file beside the model that the stand-in answers with: the base."""
    shutil.copytree(tiny, tmp_path / "served")
    return write_gguf(tmp_path / "served" / "model.gguf", "MOSTLY_Q8_0")


@pytest.fixture
def control(tiny: Path, tmp_path: Path) -> Path:
    """Return a file beside a model that is another one than the base, as a quantized base is."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.model.layers[0].mlp.down_proj.weight.data *= 3
    shutil.copytree(tiny, tmp_path / "quantized")
    model.save_pretrained(tmp_path / "quantized")
    return write_gguf(tmp_path / "quantized" / "base.gguf", "MOSTLY_Q8_0", weight=0.0)


def write_gguf(path: Path, type_: str | None, weight: float = 1.0) -> Path:
    """Write a GGUF file of a file type with one tensor."""
    from gguf import GGUFWriter, LlamaFileType

    writer = GGUFWriter(path, "llama")
    if type_ is not None:
        writer.add_file_type(LlamaFileType[type_])
    writer.add_tensor("output.weight", np.full((2, 2), weight, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(SUITE))
    return str(path)


def test_a_file_has_its_own_verdict_and_its_control_none(
    programs: Programs,
    adapter: Path,
    file: Path,
    control: Path,
    suite: str,
    tiny: Path,
    tmp_path: Path,
) -> None:
    backbone = BackboneSpec.model_validate({"model": str(tiny), "dtype": "float32"})
    done = evaluate(
        adapter,
        [suite],
        backbone,
        tmp_path / "out",
        [f"gguf={file}", f"base-gguf={control}"],
        programs=programs,
    )
    assert list(done.verdict.files) == ["gguf=model.gguf"]
    by_task = {task.task: task for task in done.verdict.suites[0].tasks}
    for task in by_task.values():
        [one] = task.files
        assert one.interval.delta == pytest.approx(0.0, abs=0.05)
        assert one.from_adapter is not None
        assert one.from_adapter.delta == pytest.approx(0.0, abs=0.05)
        assert one.control is not None
        assert one.control.items == one.interval.items
    assert by_task["quiz"].files[0].control.delta != 0
    scores = {
        arm: {
            (entry.task, entry.item): entry.score
            for entry in read_ledger(tmp_path / "out" / "ledger.parquet")
            if entry.arm == arm
        }
        for arm in ("base", "gguf=model.gguf", "base-gguf=model.gguf")
    }
    assert scores["base"].keys() == scores["gguf=model.gguf"].keys()
    assert scores["base"].keys() == scores["base-gguf=model.gguf"].keys()
    same = [scores["base"][key] == score for key, score in scores["gguf=model.gguf"].items()]
    assert sum(same) >= 0.95 * len(same)
    assert check_verdict(tmp_path / "out").verdict == done.verdict
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("gguf=model.gguf") < page.index("<main>")
    assert "arithmetic differs in the last digits; control: base.gguf, the base" in page
    assert "base quantized alike" in page
    recorded = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert set(recorded["merged_models"]) == {"gguf=model.gguf"}
    del recorded["files"]
    (tmp_path / "out" / "verdict.json").write_text(json.dumps(recorded))
    with pytest.raises(EvaluationError, match="does not follow from the ledger"):
        check_verdict(tmp_path / "out")


def test_an_answer_that_a_server_refuses_keeps_its_file_from_passing(
    programs: Programs,
    adapter: Path,
    file: Path,
    suite: str,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAULT", "long")
    backbone = BackboneSpec.model_validate({"model": str(tiny), "dtype": "float32"})
    arms = [f"gguf={file}"]
    with pytest.raises(EvaluationError, match=r"answers no item .*status 400"):
        evaluate(
            adapter,
            [suite],
            backbone,
            tmp_path / "out",
            arms,
            programs=programs,
        )
    quiz = tmp_path / "quiz.yaml"
    quiz.write_text(yaml.safe_dump({**SUITE, "tasks": SUITE["tasks"][:1]}))
    done = evaluate(
        adapter,
        [str(quiz)],
        backbone,
        tmp_path / "out",
        arms,
        programs=programs,
    )
    one = done.verdict.suites[0].tasks[0].files[0]
    assert one.missing > 0
    assert one.decision != "PASS"
    refused = [e for e in read_ledger(tmp_path / "out" / "ledger.parquet") if e.score is None]
    assert {entry.arm for entry in refused} == {"gguf=model.gguf"}
    assert "the request exceeds the context" in refused[0].output


def test_what_is_no_file_is_refused_before_anything_is_measured(
    programs: Programs, adapter: Path, file: Path, suite: str, tiny: Path, tmp_path: Path
) -> None:
    backbone = BackboneSpec.model_validate({"model": str(tiny), "dtype": "float32"})
    shutil.copytree(file.parent, tmp_path / "other")
    for arms, reason in {
        ("gguf=missing.gguf",): r"no such file .*lora-kit export DIR --to gguf",
        (f"onnx={file}",): r"unknown kind of file \(got onnx\)",
        ("ggufs",): r"arm ggufs: unknown. Fix: use base, .*gguf=FILE",
        (f"gguf={file}", f"gguf={tmp_path / 'other' / 'model.gguf'}"): "two files have this name",
    }.items():
        with pytest.raises(RecipeError, match=reason):
            evaluate(
                adapter,
                [suite],
                backbone,
                tmp_path / "out",
                arms,
                programs=programs,
            )
    with pytest.raises(RecipeError, match=r"base-gguf=model.gguf: .* q8_0 \(got no gguf=FILE\)"):
        evaluate(
            adapter, [suite], backbone, tmp_path / "out", [f"base-{arms[0]}"], programs=programs
        )
    two = SimpleNamespace(num_processes=2)
    arms = (f"gguf={file}",)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lora_kit.evaluation.arms.files.process_state", lambda: two)
        with pytest.raises(EvaluationError, match="one process asks a file's server"):
            evaluate(
                adapter,
                [suite],
                backbone,
                tmp_path / "out",
                arms,
                programs=programs,
            )
    absent = Programs(llama_cpp=tmp_path)
    with pytest.raises(EvaluationError, match="no program llama-server in this folder"):
        evaluate(
            adapter,
            [suite],
            backbone,
            tmp_path / "out",
            [f"gguf={file}"],
            programs=absent,
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("bases", "reason"),
    [
        ({"b": ("MOSTLY_Q4_K_M", 0)}, r"base-gguf=b: .* in q4_k_m \(got gguf=m in q8_0\)"),
        ({"b": ("MOSTLY_Q8_0", 1)}, "base-gguf=b: has the weights of gguf=m"),
        ({"b": (None, 0)}, r"base-gguf=b: .*\(got no general.file_type\)"),
        (
            {"b": ("MOSTLY_Q8_0", 0), "c": ("MOSTLY_Q8_0", 2)},
            r"base-gguf=c: two files of the base are in q8_0 \(got base-gguf=b as well\)",
        ),
    ],
)
def test_a_control_that_tells_nothing_of_a_file_is_refused(
    tmp_path: Path, bases: Mapping[str, tuple[str | None, float]], reason: str
) -> None:
    files = parse_files([f"gguf={write_gguf(tmp_path / 'm', 'MOSTLY_Q8_0')}"])
    controls = parse_files(
        [
            f"base-gguf={write_gguf(tmp_path / name, type_, weight)}"
            for name, (type_, weight) in bases.items()
        ]
    )
    with pytest.raises(RecipeError, match=reason):
        matched_controls(files, controls)


def test_a_control_is_that_of_every_file_in_its_type(tmp_path: Path) -> None:
    types = {"one": "ALL_F32", "two": "MOSTLY_Q8_0", "three": "MOSTLY_Q8_0"}
    files = parse_files(
        [f"gguf={write_gguf(tmp_path / name, type_)}" for name, type_ in types.items()]
    )
    [control] = parse_files([f"base-gguf={write_gguf(tmp_path / 'base', 'MOSTLY_Q8_0', 0)}"])
    assert matched_controls(files, [control]) == {files[1]: control, files[2]: control}
    control.path.write_bytes(b"GGUF")
    with pytest.raises(MergeError, match="not a whole GGUF file"):
        matched_controls(files, [control])
