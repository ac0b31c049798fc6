"""A merge under way: its finished shards, in a directory that does not look like a model."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.adapter.attach import adapter_sha256
from lora_kit.merging.tensors import Planned, stored_tensors, write_tensors
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.files import replace_directory, write_json
from lora_kit.runtime.hashes import json_sha256

INDEX = "model.safetensors.index.json"
# Tensors that are made at a time, and bytes that their float32 sums may take together.
MOST_WORKERS, SUMS_BYTES = 4, 2**29
# Another one after each start of the machine: a power failure may have cost bytes of a file that
# was whole, a killed process has not.
BOOT = Path("/proc/sys/kernel/random/boot_id")
# Beside the weights: configuration, tokenizer, index.
OTHER_FILES_BYTES = 64 * 2**20


def require_room(output: Path) -> None:
    """Raises MergeError if something lies where the model is to go."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise MergeError(f"{output}: is there already and not empty; choose another --output")


def require_free(output: Path, wanted: int) -> None:
    """Raises MergeError if the disk has less than `wanted` bytes left for the weights."""
    place = next(p for p in (output.absolute(), *output.absolute().parents) if p.exists())
    hidden = _hidden(output)
    there = sum(f.stat().st_size for f in hidden.glob("*")) if hidden.is_dir() else 0
    free = shutil.disk_usage(place).free + there
    if free < wanted + OTHER_FILES_BYTES:
        raise MergeError(
            f"{output}: the disk has {free / 1e9:.1f} GB free, "
            f"{(wanted + OTHER_FILES_BYTES) / 1e9:.1f} GB are needed; choose another --output"
        )


def _hidden(output: Path) -> Path:
    return output.absolute().parent / f".{output.name}.merging"


@dataclass(frozen=True)
class Partial:
    """The directory of a merge under way.

    Attributes:
        path: hidden, beside the output, until all is there.
        output: where it goes in the end.
    """

    path: Path
    output: Path

    @classmethod
    @contextmanager
    def of(cls, output: Path, plan: Mapping[str, Any], files: Sequence[Path]) -> Iterator[Partial]:
        """Take up what an earlier merge of the same has left, or begin.

        It stays if the block is broken off, by a full disk say, so that the next call goes on
        from it; not if it ends with a MergeError, which the next call would end with as well.

        Raises:
            MergeError: if another process is at work on it.
        """
        path = _hidden(output)
        path.mkdir(parents=True, exist_ok=True)
        with (path / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise MergeError(f"{output}: another process is merging into it") from error
            wanted = _digest(plan, files)
            begun = path / "plan"
            if not begun.is_file() or begun.read_text() != wanted:
                for file in path.iterdir():
                    if file.name != "lock":
                        file.unlink()
                begun.write_text(wanted)
            try:
                yield cls(path, output)
            except MergeError:
                shutil.rmtree(path)
                raise

    def write(self, planned: Sequence[Planned], shard_bytes: int) -> int:
        """Write the shards that are not there yet.

        Returns:
            How many were there.
        """
        shards = list(_shards(planned, shard_bytes))
        weight_map, kept = {}, 0
        for number, shard in enumerate(shards, start=1):
            name = (
                "model.safetensors"
                if len(shards) == 1
                else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            )
            weight_map.update({one.key: name for one in shard})
            if _is_whole(self.path / name):
                kept += 1
                continue
            unfinished = self.path / f"{name}.unfinished"
            write_tensors(unfinished, shard, _workers(shard))
            unfinished.rename(self.path / name)
        if len(shards) > 1:
            total = sum(one.length for one in planned)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_json(self.path / INDEX, index)
        return kept

    def finish(self) -> None:
        """Put it where it belongs."""
        for name in ("plan", "lock"):
            (self.path / name).unlink()
        if self.output.exists():
            self.output.rmdir()  # never more than an empty directory
        replace_directory(self.path, self.output)


def _workers(shard: Sequence[Planned]) -> int:
    largest = max(4 * one.length // one.dtype.itemsize for one in shard)
    return max(min(MOST_WORKERS, os.cpu_count() or 1, SUMS_BYTES // max(largest, 1)), 1)


def _is_whole(path: Path) -> bool:
    """Whether a shard is there with all its bytes."""
    try:
        return path.is_file() and bool(stored_tensors(path))
    except MergeError:
        return False


def _digest(plan: Mapping[str, Any], files: Sequence[Path]) -> str:
    """What has to be the same for shards to be gone on from."""
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    adapter = adapter_sha256(plan["adapter"]) if plan["adapter"] else None
    boot = BOOT.read_text() if BOOT.is_file() else ""
    described = [dict(plan), adapter, stats, boot]
    return json_sha256(described)


def _shards(planned: Sequence[Planned], limit: int) -> Iterator[list[Planned]]:
    """Cut where the next tensor would be too much; a tensor is never cut."""
    shard: list[Planned] = []
    size = 0
    for one in planned:
        if shard and size + one.length > limit:
            yield shard
            shard, size = [], 0
        shard.append(one)
        size += one.length
    if shard:
        yield shard
