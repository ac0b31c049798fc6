"""safetensors files read and written tensor by tensor, by offset: no file is ever mapped or held.

The format: eight bytes with the length of a JSON header, the header, then the tensors' bytes
(https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lora_kit.runtime.errors import MergeError

LENGTH_BYTES = 8
# What the library itself refuses to read.
MOST_HEADER_BYTES = 100 * 2**20
COPIED_BYTES = 4 * 2**20
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
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        start: its first byte in the file.
        length: its bytes.
    """

    path: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    length: int

    def read(self) -> torch.Tensor:
        """The tensor, in memory of its own.

        Raises:
            MergeError: if the file ends before the tensor does.
        """
        return self._read(self.start, self.length).view(self.shape)

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Some rows of it.

        Raises:
            MergeError: as `read`.
        """
        each = self.length // self.shape[0]
        read = self._read(self.start + first * each, (last - first) * each)
        return read.view(last - first, *self.shape[1:])

    def parts(self) -> Iterator[memoryview]:
        """Its bytes, some at a time.

        Raises:
            MergeError: as `read`.
        """
        for done in range(0, self.length, COPIED_BYTES):
            size = min(COPIED_BYTES, self.length - done)
            yield self._bytes(self.start + done, size).numpy().data

    def _read(self, start: int, length: int) -> torch.Tensor:
        return self._bytes(start, length).view(self.dtype)

    def _bytes(self, start: int, length: int) -> torch.Tensor:
        raw = torch.empty(length, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            view, got = memoryview(raw.numpy().data), 0
            while got < length and (more := file.readinto(view[got:])):
                got += more
        if got < length:
            raise MergeError(f"{self.path}: ends in the middle of {self.key}")
        return raw


def stored_tensors(path: Path) -> list[Stored]:
    """The tensors of a file in the order of their bytes, from its header alone.

    Raises:
        MergeError: if it is no safetensors file, or not a whole one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if size < LENGTH_BYTES or length > min(MOST_HEADER_BYTES, size - LENGTH_BYTES):
            raise MergeError(f"{path}: no safetensors file, or one that is cut off in its header")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        found = [
            Stored(
                path,
                key,
                DTYPES[entry["dtype"]],
                tuple(entry["shape"]),
                LENGTH_BYTES + length + entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for key, entry in header.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MergeError(f"{path}: its header cannot be read: {error}") from error
    found.sort(key=lambda tensor: tensor.start)
    end = max((tensor.start + tensor.length for tensor in found), default=LENGTH_BYTES + length)
    if end != size:
        raise MergeError(
            f"{path}: has {size:,} bytes, its header says {end:,}; it is damaged, fetch it again"
        )
    return found


@dataclass(frozen=True)
class Planned:
    """A tensor that is going to be written.

    Attributes:
        produce: gives it when its turn comes, whole or some rows at a time; `None` where its bytes
            are those of `copied`.
        untouched: whether it is another file's tensor, but for the dtype.
    """

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    produce: Callable[[], torch.Tensor | Iterator[torch.Tensor]] | None = None
    copied: Stored | None = None
    untouched: bool = False

    @property
    def length(self) -> int:
        """Bytes."""
        count = 1
        for side in self.shape:
            count *= side
        return count * self.dtype.itemsize


def write_tensors(path: Path, planned: Sequence[Planned], workers: int = 1) -> None:
    """Write a safetensors file.

    Args:
        path: of the file.
        planned: its tensors, in their order.
        workers: tensors that are made and written at a time, each in a thread of its own; what
            makes them must bear that.

    Raises:
        MergeError: if a tensor turns out other than planned.
    """
    header = _header(planned)
    # Unbuffered: what is written is large, and half as fast through a buffer.
    with path.open("wb", buffering=0) as file:
        _write_at(file.fileno(), 0, header)
        start = len(header)
        work = []
        for one in planned:
            work.append(partial(_write, file.fileno(), start, one))
            start += one.length
        file.truncate(start)
        _in_threads(work, workers)


def _in_threads(work: Sequence[Callable[[], None]], workers: int) -> None:
    threads = torch.get_num_threads()
    try:
        # Torch's threads are shared out: together they have no more, and few wait for another.
        share = max(threads // workers, 1)
        with ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(share,)
        ) as pool:
            waiting = [pool.submit(one) for one in work]
            try:
                for one in as_completed(waiting):
                    one.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        # New threads take over what the last one was told.
        torch.set_num_threads(threads)


def _write(file: int, start: int, planned: Planned) -> None:
    if planned.copied is not None:
        for raw in planned.copied.parts():
            start += _write_at(file, start, raw)
    elif planned.produce is not None:
        made = planned.produce()
        rows = 0
        for part in iter([made]) if isinstance(made, torch.Tensor) else made:
            rows += len(part) if part.dim() else 1
            if part.dtype != planned.dtype or tuple(part.shape[1:]) != planned.shape[1:]:
                raise _otherwise(planned, f"{part.dtype} of shape {tuple(part.shape)}")
            flat = part.contiguous().view(-1).view(torch.uint8)
            start += _write_at(file, start, flat.numpy().data)
        if rows != (planned.shape[0] if planned.shape else 1):
            raise _otherwise(planned, f"{rows} rows")


def _otherwise(planned: Planned, found: str) -> MergeError:
    return MergeError(
        f"{planned.key}: came out as {found}, {planned.dtype} of shape {planned.shape} was planned"
    )


def _write_at(file: int, start: int, data: bytes | memoryview) -> int:
    """Write all of it at a place in the file; return how many bytes that were."""
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(file, view[done:], start + done)
    return done


def _header(planned: Iterable[Planned]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for one in planned:
        entries[one.key] = {
            "dtype": NAMES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [offset, offset + one.length],
        }
        offset += one.length
    text = json.dumps(entries, separators=(",", ":")).encode()
    # Tensors begin at a multiple of eight bytes, as the library writes them.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def by_key(files: Iterable[Path]) -> Mapping[str, Stored]:
    """All tensors of some files.

    Raises:
        MergeError: as `stored_tensors`; if two files hold the same tensor.
    """
    found: dict[str, Stored] = {}
    for path in files:
        for tensor in stored_tensors(path):
            if tensor.key in found:
                raise MergeError(f"{path}: {tensor.key} is in {found[tensor.key].path.name} too")
            found[tensor.key] = tensor
    return found
