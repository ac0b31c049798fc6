"""Keep the finished shards of a merge in progress in a hidden directory, to resume from them."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub.constants import SAFETENSORS_INDEX_FILE

from lora_kit.adapter.saved import adapter_sha256
from lora_kit.merging.plan import MergePlan
from lora_kit.merging.tensors import PlannedTensor, stored_tensors, write_tensors
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.files import replace_directory, write_json
from lora_kit.runtime.hashes import json_sha256
from lora_kit.runtime.temporaries import delete, is_empty

# Largest number of tensors made at a time, and of bytes of their float32 sums together.
MAX_WORKERS, MAX_SUM_BYTES = 4, 2**29
# Differs after each start of the machine: a power failure may have cost bytes of a file that was
# complete; a killed process cannot.
BOOT = Path("/proc/sys/kernel/random/boot_id")
# Allowance for the files beside the weights: configuration, tokenizer, index.
OTHER_FILES_BYTES = 64 * 2**20


def require_empty_output(output: Path) -> None:
    """Refuse an output directory that exists and is not empty.

    Raises:
        MergeError: if it does.
    """
    if output.exists() and not (output.is_dir() and is_empty(output)):
        raise MergeError(
            f"{output}: already exists (got a file, or a directory that is not empty). "
            "Fix: choose another --output"
        )


def require_disk_space(output: Path, weight_bytes: int) -> None:
    """Refuse a merge that does not fit on the disk.

    Args:
        output: directory of the merged model.
        weight_bytes: bytes of the weights, shards of an interrupted merge included.

    Raises:
        MergeError: if the disk has less free space than that.
    """
    place = next(p for p in (output.absolute(), *output.absolute().parents) if p.exists())
    hidden = _hidden_directory(output)
    present = sum(f.stat().st_size for f in hidden.glob("*")) if hidden.is_dir() else 0
    free = shutil.disk_usage(place).free + present
    needed = weight_bytes + OTHER_FILES_BYTES
    if free < needed:
        raise MergeError(
            f"{output}: disk too small (got {free / 1e9:.1f} GB free, "
            f"{needed / 1e9:.1f} GB are needed). Fix: free space, or choose another --output"
        )


def _hidden_directory(output: Path) -> Path:
    return output.absolute().parent / f".{output.name}.merging"


@dataclass(frozen=True)
class PartialMerge:
    """Directory of a merge in progress.

    Attributes:
        path: hidden directory beside the output.
        output: directory that takes the place of `path` in the end.
    """

    path: Path
    output: Path

    @classmethod
    @contextmanager
    def begin_or_resume(
        cls, output: Path, plan: MergePlan, files: Sequence[Path]
    ) -> Iterator[PartialMerge]:
        """Resume an interrupted merge of the same plan and files, or begin a new one.

        The directory is kept if the block is interrupted, by a full disk for example, so that the
        next call resumes from it. A MergeError removes it, as the next call would fail as well.

        Args:
            output: directory of the merged model.
            plan: plan of the merge.
            files: weight files of the backbone.

        Raises:
            MergeError: if another process merges into the same output.
        """
        path = _hidden_directory(output)
        path.mkdir(parents=True, exist_ok=True)
        with (path / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise MergeError(
                    f"{output}: another process is merging into it (got a locked {path})."
                    " Fix: wait for it, or choose another --output"
                ) from error
            digest = _digest(plan, files)
            digest_file = path / "plan"
            is_same = digest_file.is_file() and digest_file.read_text() == digest
            for file in path.iterdir():
                # All but the shards is written anew, also what a killed process left half written.
                is_kept = file.name == "plan" or file.suffix == ".safetensors"
                if file.name != "lock" and not (is_same and is_kept):
                    delete(file)
            if not is_same:
                digest_file.write_text(digest)
            try:
                yield cls(path, output)
            except MergeError:
                shutil.rmtree(path)
                raise

    def write(self, planned: Sequence[PlannedTensor], shard_bytes: int) -> int:
        """Write the missing shards, and the index if there are several.

        Args:
            planned: all tensors of the merged model.
            shard_bytes: largest size of a shard, in bytes.

        Returns:
            Number of shards that an earlier merge wrote.
        """
        shards = list(_split_into_shards(planned, shard_bytes))
        weight_map, reused = {}, 0
        for number, shard in enumerate(shards, start=1):
            name = (
                "model.safetensors"
                if len(shards) == 1
                else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            )
            weight_map.update({one.key: name for one in shard})
            if _is_complete(self.path / name):
                reused += 1
                continue
            unfinished = self.path / f"{name}.unfinished"
            write_tensors(unfinished, shard, _worker_count(shard))
            unfinished.rename(self.path / name)
        if len(shards) > 1:
            total = sum(one.nbytes for one in planned)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_json(self.path / SAFETENSORS_INDEX_FILE, index)
        return reused

    def finish(self) -> None:
        """Move the directory to the output."""
        require_empty_output(self.output)
        for name in ("plan", "lock"):
            (self.path / name).unlink()
        replace_directory(self.path, self.output)


def _worker_count(shard: Sequence[PlannedTensor]) -> int:
    largest = max(4 * one.nbytes // one.dtype.itemsize for one in shard)
    return max(min(MAX_WORKERS, os.cpu_count() or 1, MAX_SUM_BYTES // max(largest, 1)), 1)


def _is_complete(path: Path) -> bool:
    """Return True if a shard exists with all its bytes."""
    try:
        return path.is_file() and bool(stored_tensors(path))
    except MergeError:
        return False


def _digest(plan: MergePlan, files: Sequence[Path]) -> str:
    """Return a digest of all that must be unchanged for shards to be reused."""
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    adapter = adapter_sha256(plan.adapter) if plan.adapter else None
    boot = BOOT.read_text() if BOOT.is_file() else ""
    return json_sha256([asdict(plan), adapter, stats, boot])


def _split_into_shards(
    planned: Sequence[PlannedTensor], limit: int
) -> Iterator[list[PlannedTensor]]:
    """Yield consecutive tensors of at most `limit` bytes together; a tensor is never split."""
    shard: list[PlannedTensor] = []
    size = 0
    for one in planned:
        if shard and size + one.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(one)
        size += one.nbytes
    if shard:
        yield shard
