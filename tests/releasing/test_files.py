"""Releases with files in other formats, and quantized arms of a run."""

import json
import shutil
from pathlib import Path

import pytest

from lora_kit.evaluation.ledger import read_ledger
from lora_kit.evaluation.verdict_file import check_verdict
from lora_kit.pipeline import evaluate, release, verify
from lora_kit.pipeline.shipped_arms import Programs
from lora_kit.releasing.manifest import MANIFEST
from lora_kit.runtime.errors import ReleaseError
from lora_kit.runtime.files import write_json
from lora_kit.runtime.hashes import file_sha256
from tests.standins.programs import write_llama_server


@pytest.fixture(scope="module")
def judged(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a run and a file judged in it, for which the stand-in answers by the merged model."""
    place = tmp_path_factory.mktemp("judged")
    run = Path(shutil.copytree(finished, place / "run"))
    file = Path(shutil.copytree(run / "merged", place / "served")) / "small.gguf"
    file.write_bytes(b"GGUF: of the merged model")
    file.with_name("small.Modelfile").write_text("FROM ./small.gguf\n")
    program = write_llama_server(place / "programs")
    arms = ["merged", f"gguf={file}"]
    evaluate(run, arms=arms, programs=Programs(llama_cpp=program.parent))
    return run, file


def test_a_release_carries_files_with_their_verdicts(
    judged: tuple[Path, Path], tmp_path: Path
) -> None:
    run, file = judged
    made = release(run, tmp_path / "release", files=[file])
    assert (made.directory / "small.gguf").read_bytes() == file.read_bytes()
    assert (made.directory / "small.Modelfile").is_file()
    card = (made.directory / "README.md").read_text()
    assert "for the adapter, the merged model and the files together" in card
    [row] = [line for line in card.splitlines() if line.startswith("| `small.gguf` | sums/loss")]
    assert row.endswith("| PASS |")
    verify(made.directory)


def test_a_file_that_was_swapped_after_its_verdict_is_refused(
    judged: tuple[Path, Path], tmp_path: Path
) -> None:
    run, file = judged
    made = release(run, tmp_path / "release", files=[file])
    swapped = made.directory / "small.gguf"
    swapped.write_bytes(b"GGUF: of something else")
    with pytest.raises(ReleaseError, match=r"changed: small\.gguf"):
        verify(made.directory)
    # Also if the manifest is made to fit.
    manifest = json.loads((made.directory / MANIFEST).read_text())
    manifest["files"]["small.gguf"] = file_sha256(swapped)
    write_json(made.directory / MANIFEST, manifest)
    with pytest.raises(ReleaseError, match=r"small\.gguf: is not the file that was judged"):
        verify(made.directory)
    with pytest.raises(ReleaseError, match="is not the file that was judged") as caught:
        release(run, tmp_path / "again", files=[swapped])
    assert caught.value.status == 3
    assert not (tmp_path / "again").exists()


def test_files_that_were_not_judged_are_refused(run_copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    with pytest.raises(ReleaseError, match="--file: not a GGUF file"):
        release(run_copy, files=[other])
    other.write_bytes(b"GGUF")
    with pytest.raises(ReleaseError, match=r"was not judged.*--arm gguf=") as caught:
        release(run_copy, files=[other])
    assert caught.value.status == 2
    with pytest.raises(ReleaseError, match="two files have the same name"):
        release(run_copy, files=[other, other])


def test_the_merged_model_is_judged_in_four_bits_with_the_base_alike(run_copy: Path) -> None:
    done = evaluate(run_copy, arms=["merged", "nf4"])
    assert list(done.verdict.files) == ["nf4"]
    arms = {entry.arm for entry in read_ledger(done.directory / "ledger.parquet")}
    assert arms >= {"base", "adapter", "merged", "nf4", "base-nf4"}
    for _, task in done.verdict.tasks:
        [one] = task.files
        assert one.control is not None
        assert one.control.delta != 0
        assert one.from_adapter is not None
        assert one.from_adapter.delta != 0
        assert abs(one.from_adapter.delta) < 0.2 * task.adapter
    assert check_verdict(done.directory).verdict == done.verdict
    assert "base quantized alike" in (done.directory / "report.html").read_text()
