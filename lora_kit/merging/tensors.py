"""Read and write safetensors files tensor by tensor, by byte offset.

Format: eight bytes with the length of a JSON header, the header, then the tensors' bytes
(https://huggingface.co/docs/safetensors, "Format").

`safetensors.safe_open` would read the same tensors, but maps the whole file as private, writable
memory: a file larger than RAM and swap cannot be opened (40 GiB on a machine of 23 GiB: "Cannot
allocate memory", safetensors 0.8.0), and a file that is truncated while it is read kills the
process with SIGBUS. Reads by offset need memory for one tensor only, and raise `MergeError`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lora_kit.runtime.errors import MergeError

LENGTH_BYTES = 8
# The safetensors library refuses larger headers.
MAX_HEADER_BYTES = 100 * 2**20
COPY_CHUNK_BYTES = 4 * 2**20
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Tensor in a safetensors file.

    Attributes:
        path: the file.
        key: name of the tensor in the file.
        dtype: dtype as stored.
        shape: shape as stored.
        offset: position of the first byte in the file.
        nbytes: number of bytes.
    """

    path: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def read(self) -> torch.Tensor:
        """Return the tensor, of the stored shape and dtype, in memory of its own.

        Raises:
            MergeError: if the file ends before the tensor does.
        """
        return self._read_bytes(self.offset, self.nbytes).view(self.dtype).view(self.shape)

    def read_rows(self, first: int, last: int) -> torch.Tensor:
        """Return rows `first` to `last` - 1, (last - first, ...), in the stored dtype.

        Raises:
            MergeError: if the file ends before the rows do.
        """
        row_bytes = self.nbytes // self.shape[0]
        raw = self._read_bytes(self.offset + first * row_bytes, (last - first) * row_bytes)
        return raw.view(self.dtype).view(last - first, *self.shape[1:])

    def read_chunks(self) -> Iterator[memoryview]:
        """Yield the bytes of the tensor, at most `COPY_CHUNK_BYTES` at a time.

        Raises:
            MergeError: if the file ends before the tensor does.
        """
        for done in range(0, self.nbytes, COPY_CHUNK_BYTES):
            count = min(COPY_CHUNK_BYTES, self.nbytes - done)
            yield self._read_bytes(self.offset + done, count).numpy().data

    def _read_bytes(self, offset: int, count: int) -> torch.Tensor:
        raw = torch.empty(count, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(offset)
            view, done = memoryview(raw.numpy().data), 0
            while done < count and (read := file.readinto(view[done:])):
                done += read
        if done < count:
            raise MergeError(
                f"{self.path}: truncated inside {self.key} (got {done:,} of {count:,} bytes). "
                "Fix: fetch the file again"
            )
        return raw


def stored_tensors(path: Path) -> list[StoredTensor]:
    """List the tensors of a file in the order of their bytes; only the header is read.

    Raises:
        MergeError: if the file is no safetensors file, or is truncated.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if size < LENGTH_BYTES or length > min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
            raise MergeError(
                f"{path}: no safetensors file, or one truncated in its header (got {size:,} "
                "bytes). Fix: fetch the file again"
            )
        raw = file.read(length)
    start = LENGTH_BYTES + length
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = [
            StoredTensor(
                path,
                key,
                DTYPES[entry["dtype"]],
                tuple(entry["shape"]),
                start + entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for key, entry in header.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MergeError(
            f"{path}: header cannot be read (got {type(error).__name__}: {error}). "
            "Fix: fetch the file again, or save it with a supported dtype"
        ) from error
    tensors.sort(key=lambda tensor: tensor.offset)
    end = max((tensor.offset + tensor.nbytes for tensor in tensors), default=start)
    if end != size:
        raise MergeError(
            f"{path}: file is damaged (got {size:,} bytes, its header needs {end:,}). "
            "Fix: fetch the file again"
        )
    return tensors


def stored_by_key(files: Iterable[Path]) -> Mapping[str, StoredTensor]:
    """Return the tensors of several files by their keys.

    Raises:
        MergeError: if a file cannot be read, or two files hold the same tensor.
    """
    result: dict[str, StoredTensor] = {}
    for path in files:
        for tensor in stored_tensors(path):
            if tensor.key in result:
                raise MergeError(
                    f"{path}: duplicate tensor (got {tensor.key}, which is in "
                    f"{result[tensor.key].path.name} too). Fix: remove one of the two files"
                )
            result[tensor.key] = tensor
    return result


@dataclass(frozen=True)
class PlannedTensor:
    """Tensor to be written.

    Attributes:
        key: name of the tensor in the file.
        dtype: dtype to store.
        shape: shape to store.
        produce: callable that returns the tensor, or yields its rows in blocks; `None` where the
            bytes are those of `copied`.
        copied: tensor whose bytes are copied as they are; `None` where `produce` is given.
        unmodified: true if the values are those of a tensor of the backbone, up to the dtype.
    """

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    produce: Callable[[], torch.Tensor | Iterator[torch.Tensor]] | None = None
    copied: StoredTensor | None = None
    unmodified: bool = False

    @property
    def nbytes(self) -> int:
        """Number of bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(path: Path, planned: Sequence[PlannedTensor], workers: int = 1) -> None:
    """Write a safetensors file.

    Args:
        path: file to write.
        planned: tensors in the order of the file.
        workers: number of tensors that are produced and written at a time, each in its own
            thread; every `produce` must then be safe to call from several threads.

    Raises:
        MergeError: if a produced tensor has another dtype or shape than planned.
    """
    header = _header(planned)
    # Unbuffered: writes are large, and take twice as long through a buffer.
    with path.open("wb", buffering=0) as file:
        _write_at(file.fileno(), 0, header)
        offset = len(header)
        work = []
        for one in planned:
            work.append(partial(_write, file.fileno(), offset, one))
            offset += one.nbytes
        file.truncate(offset)
        _run_in_threads(work, workers)


def _run_in_threads(work: Sequence[Callable[[], None]], workers: int) -> None:
    threads = torch.get_num_threads()
    try:
        # Each worker gets its share of torch's threads, so that the total stays the same.
        share = max(threads // workers, 1)
        with ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(share,)
        ) as pool:
            pending = [pool.submit(one) for one in work]
            try:
                for one in as_completed(pending):
                    one.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        # torch applies the last `set_num_threads`, from whichever thread, to new threads.
        torch.set_num_threads(threads)


def _write(file: int, offset: int, planned: PlannedTensor) -> None:
    if planned.copied is not None:
        for raw in planned.copied.read_chunks():
            offset += _write_at(file, offset, raw)
    elif planned.produce is not None:
        produced = planned.produce()
        rows = 0
        for block in iter([produced]) if isinstance(produced, torch.Tensor) else produced:
            rows += len(block) if block.dim() else 1
            if block.dtype != planned.dtype or tuple(block.shape[1:]) != planned.shape[1:]:
                raise _unplanned(planned, f"{block.dtype} of shape {tuple(block.shape)}")
            flat = block.contiguous().view(-1).view(torch.uint8)
            offset += _write_at(file, offset, flat.numpy().data)
        if rows != (planned.shape[0] if planned.shape else 1):
            raise _unplanned(planned, f"{rows} rows")


def _unplanned(planned: PlannedTensor, produced: str) -> MergeError:
    return MergeError(
        f"{planned.key}: produced tensor differs from the plan (got {produced}, {planned.dtype} of "
        f"shape {planned.shape} was planned). Fix: merge into the backbone that the adapter was "
        "trained on"
    )


def _write_at(file: int, offset: int, data: bytes | memoryview) -> int:
    """Write all of `data` at an offset and return the number of bytes."""
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(file, view[done:], offset + done)
    return done


def _header(planned: Iterable[PlannedTensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for one in planned:
        entries[one.key] = {
            "dtype": DTYPE_NAMES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [offset, offset + one.nbytes],
        }
        offset += one.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    # Tensors start at a multiple of eight bytes, as the safetensors library writes them.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text
