import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_kit.merging.tensors import PlannedTensor, stored_by_key, stored_tensors, write_tensors
from lora_kit.runtime.errors import MergeError

TENSORS = {
    "b": torch.arange(12, dtype=torch.float32).view(3, 4),
    "a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "none": torch.zeros(0, 4),
    "flags": torch.tensor([True, False]),
}


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    found = stored_by_key([tmp_path / "x.safetensors"])
    assert set(found) == set(TENSORS)
    for key, tensor in TENSORS.items():
        assert torch.equal(found[key].read(), tensor), key


def test_what_is_written_the_library_reads(tmp_path: Path) -> None:
    planned = [
        PlannedTensor(key, tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: tensor)
        for key, tensor in TENSORS.items()
    ]
    write_tensors(tmp_path / "y.safetensors", planned)
    found = load_file(tmp_path / "y.safetensors")
    assert set(found) == set(TENSORS)
    for key, tensor in TENSORS.items():
        assert torch.equal(found[key], tensor), key


def test_bytes_are_copied_from_file_to_file_among_tensors_that_are_made(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    stored = stored_by_key([tmp_path / "x.safetensors"])
    made = torch.ones(5)
    planned = [
        PlannedTensor("b", torch.float32, (3, 4), copied=stored["b"]),
        PlannedTensor("made", torch.float32, (5,), lambda: made),
        PlannedTensor("a", torch.bfloat16, (2,), copied=stored["a"]),
    ]
    write_tensors(tmp_path / "y.safetensors", planned)
    found = load_file(tmp_path / "y.safetensors")
    assert torch.equal(found["b"], TENSORS["b"])
    assert torch.equal(found["a"], TENSORS["a"])
    assert torch.equal(found["made"], made)


@pytest.mark.parametrize("lost", [1, 20, 200])
def test_a_truncated_shard_is_refused_by_name(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(MergeError, match=r"x\.safetensors: .*(damaged|truncated)"):
        stored_tensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no safetensors file"),
        (b"PK\x03\x04 an archive", "no safetensors file"),
        ((3).to_bytes(8, "little") + b"no!", "header cannot be read"),
        ((2).to_bytes(8, "little") + b"[]", "header cannot be read"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(MergeError, match=message):
        stored_tensors(path)


def test_a_dtype_that_is_not_known_is_named(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(MergeError, match=r"header cannot be read .*KeyError: 'F4'"):
        stored_tensors(path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("x", "y"):
        save_file({"w": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(MergeError, match=r"got w, which is in x\.safetensors too"):
        stored_by_key([tmp_path / "x.safetensors", tmp_path / "y.safetensors"])


def test_a_tensor_that_differs_from_the_plan_is_an_error(tmp_path: Path) -> None:
    planned = [PlannedTensor("w", torch.float32, (2,), lambda: torch.ones(3))]
    with pytest.raises(
        MergeError, match=r"w: produced tensor differs from the plan \(got 3 rows, .*was planned"
    ):
        write_tensors(tmp_path / "x.safetensors", planned)
