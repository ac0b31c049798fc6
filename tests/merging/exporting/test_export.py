"""Exports as a whole: damaged, killed and repeated ones, and the command."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lora_kit.cli.app import app
from lora_kit.merging.exporting import gguf_model
from lora_kit.merging.exporting.export import export
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.hashes import file_sha256
from tests.merging.exporting.small_model import (
    TEXTS,
)


@pytest.mark.parametrize(("to", "message"), [("gguf", "file is damaged"), ("nf4", "cannot be")])
def test_a_truncated_shard_is_an_error_and_leaves_nothing(
    to: Any, message: str, model: Path, tmp_path: Path
) -> None:
    shard = max(model.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(MergeError, match=message):
        export(model, to, tmp_path / "out", texts=TEXTS)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


# Forks that kill themselves before a file of the export is moved to its place.
KILLED = """
import os, signal, sys
from pathlib import Path
from lora_kit.merging.exporting.export import export
model, folder, *texts = sys.argv[1:]
for name in ("model.gguf", "model.gguf.json", "model.Modelfile"):
    output = Path(folder) / f"before {name}" / "model.gguf"
    child = os.fork()
    if child == 0:
        def kill(event, given):
            if event == "os.rename" and Path(str(given[1])) == output.with_name(name):
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(kill)
        export(Path(model), "gguf", output, "f32", texts)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), name
"""


def test_an_export_killed_before_a_file_is_in_place_is_done_again(
    model: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, str(model), str(tmp_path), *TEXTS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folders = sorted(tmp_path.glob("before *"))
    assert len(folders) == 3
    for folder in folders:
        output = folder / "model.gguf"
        assert not output.exists()
        result = export(model, "gguf", output, "f32", TEXTS)
        record = folder / "model.gguf.json"
        assert sorted(folder.iterdir()) == [folder / "model.Modelfile", output, record]
        assert json.loads(record.read_text())["files"] == result.files


def test_an_export_without_its_record_is_done_again_and_a_foreign_file_is_left(
    model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model.gguf"
    record = tmp_path / "model.gguf.json"
    export(model, "gguf", output, "f32", TEXTS)
    with pytest.raises(MergeError, match="already exists"):
        export(model, "gguf", output, "f32", TEXTS)
    expected = record.read_text()
    record.unlink()
    export(model, "gguf", output, "f32", TEXTS)
    assert record.read_text() == expected
    record.unlink()
    output.write_bytes(b"of somebody else")
    with pytest.raises(
        MergeError, match=r"is not this export \(got a file without model.gguf.json"
    ):
        export(model, "gguf", output, "f32", TEXTS)
    assert output.read_bytes() == b"of somebody else"
    assert not record.exists()
    output.unlink()
    beside = tmp_path / "model.Modelfile"
    beside.write_text("FROM ./another.gguf\n")
    with pytest.raises(MergeError, match=r"model\.Modelfile: already exists"):
        export(model, "gguf", output, "f32", TEXTS)
    assert sorted(tmp_path.glob("model.*")) == [beside]


def test_the_command_prints_the_comparison_and_fails_if_the_export_is_too_far_off(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(text.replace("\n", " ") for text in TEXTS))
    command = ["export", str(model), "--to", "gguf", "--type", "f32", "--texts", str(texts)]
    done = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "a.gguf")])
    assert done.exit_code == 0, done.output
    assert "The evaluation is of the model that this export was made from" in done.output
    record = json.loads((tmp_path / "a.gguf.json").read_text())
    assert record["passed"] is True
    written = ("a.gguf", "a.Modelfile")
    assert record["files"] == {name: file_sha256(tmp_path / name) for name in written}
    # An export of weights that are half as large.
    whole = gguf_model._values
    monkeypatch.setattr(gguf_model, "_values", lambda *given: whole(*given) / 2)
    done = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "b.gguf"), "--json"])
    assert done.exit_code == 3, done.output
    assert json.loads(done.stdout)["passed"] is False
