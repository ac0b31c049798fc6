"""An interrupted merge, and how it resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lora_kit.merging.partial import PartialMerge
from lora_kit.merging.plan import MergePlan
from lora_kit.merging.stream import merge_stream
from lora_kit.merging.tensors import PlannedTensor, write_tensors
from lora_kit.runtime.errors import MergeError
from tests.merging.test_methods import lora, plan_of, trained

SHARD = 60_000
# Writes one tensor at a time so slowly that there is time to kill it.
SLOWLY = """
import json, sys, time
from pathlib import Path
from lora_kit.merging import stream
made = stream.MetaModel.merged_rows
def slowly(*arguments):
    time.sleep(0.2)
    return made(*arguments)
stream.MetaModel.merged_rows = slowly
fields = json.loads(sys.argv[1])
for name in ("base", "adapter"):
    fields[name] = Path(fields[name])
stream.merge_stream(stream.MergePlan(**fields), Path(sys.argv[2]))
"""


@pytest.fixture
def plan(checkpoints: dict[str, Path], tmp_path: Path) -> MergePlan:
    trained(checkpoints["untied"], lora(), tmp_path / "adapter")
    return plan_of(checkpoints["untied"], tmp_path / "adapter", shard_bytes=SHARD)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_killed_merge_leaves_no_model_and_resumes_from_its_shards(
    plan: MergePlan, tmp_path: Path
) -> None:
    fields = {**asdict(plan), "base": str(plan.base), "adapter": str(plan.adapter)}
    output = tmp_path / "merged"
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, json.dumps(fields), str(output)])
    hidden = tmp_path / ".merged.merging"
    while not list(hidden.glob("model-00003*")):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not output.exists()
    assert not (hidden / "config.json").exists()
    result = merge_stream(plan, output)
    assert result.kept_shards >= 2
    assert not hidden.exists()
    merge_stream(plan, tmp_path / "at once")
    assert contents(output) == contents(tmp_path / "at once")


def interrupt(plan: MergePlan, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge with a disk that is full after the second shard."""
    from lora_kit.merging import partial

    def until_full(path: Path, shard: list[PlannedTensor], workers: int) -> None:
        if "00003" in path.name:
            raise OSError(28, "No space left on device")
        write_tensors(path, shard, workers)

    with monkeypatch.context() as patched:
        patched.setattr(partial, "write_tensors", until_full)
        with pytest.raises(OSError, match="No space left"):
            merge_stream(plan, output)
    assert not output.exists()


def test_a_merge_resumes_after_a_full_disk(
    plan: MergePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(plan, tmp_path / "merged", monkeypatch)
    assert merge_stream(plan, tmp_path / "merged").kept_shards == 2


def test_a_merge_of_another_adapter_does_not_resume_from_these_shards(
    plan: MergePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(plan, tmp_path / "merged", monkeypatch)
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_alpha": 16}))
    assert merge_stream(plan, tmp_path / "merged").kept_shards == 0


def test_a_merge_in_another_dtype_does_not_resume_from_these_shards(
    plan: MergePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(plan, tmp_path / "merged", monkeypatch)
    other = replace(plan, stored_dtype="bfloat16")
    assert merge_stream(other, tmp_path / "merged").kept_shards == 0
    for path in (tmp_path / "merged").glob("*.safetensors"):
        assert {str(t.dtype) for t in load_file(path).values()} == {"torch.bfloat16"}


def test_a_shard_that_lost_bytes_is_written_again(
    plan: MergePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(plan, tmp_path / "merged", monkeypatch)
    shard = next((tmp_path / ".merged.merging").glob("model-00001*"))
    shard.write_bytes(shard.read_bytes()[:-10])
    assert merge_stream(plan, tmp_path / "merged").kept_shards == 1
    merge_stream(plan, tmp_path / "at once")
    assert contents(tmp_path / "merged") == contents(tmp_path / "at once")


def test_two_merges_into_one_place_at_a_time_are_refused(plan: MergePlan, tmp_path: Path) -> None:
    with (
        PartialMerge.begin_or_resume(tmp_path / "merged", plan, []),
        pytest.raises(MergeError, match="another process is merging into it"),
    ):
        merge_stream(plan, tmp_path / "merged")


def test_what_cannot_be_merged_leaves_nothing(
    plan: MergePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_kit.merging import partial

    def wrong(*_: object) -> None:
        raise MergeError("w: holds numbers that are none")

    monkeypatch.setattr(partial, "write_tensors", wrong)
    with pytest.raises(MergeError, match="numbers that are none"):
        merge_stream(plan, tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}
