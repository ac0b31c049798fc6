"""safetensors files read and written tensor by tensor, by offset: no file is ever mapped or held.

The format: eight bytes with the length of a JSON header, the header, then the tensors' bytes
(https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_kit.errors import MergeError

LENGTH_BYTES = 8
# What the library itself refuses to read.
MOST_HEADER_BYTES = 100 * 2**20
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
        raw = torch.empty(self.length, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            view, got = memoryview(raw.numpy().data), 0
            while got < self.length and (more := file.readinto(view[got:])):
                got += more
        if got < self.length:
            raise MergeError(f"{self.path}: ends in the middle of {self.key}")
        return raw.view(self.dtype).view(self.shape)


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
        produce: gives it, when its turn comes; `None` where its bytes are those of `copied`.
    """

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    produce: Callable[[], torch.Tensor] | None = None
    copied: Stored | None = None

    @property
    def length(self) -> int:
        """Bytes."""
        count = 1
        for side in self.shape:
            count *= side
        return count * self.dtype.itemsize


def write_tensors(path: Path, planned: Iterable[Planned]) -> None:
    """Write a safetensors file, holding one tensor at a time.

    Raises:
        MergeError: if a tensor turns out other than planned.
    """
    planned = list(planned)
    with path.open("wb") as file:
        file.write(_header(planned))
        for one in planned:
            if one.copied is not None:
                file.flush()
                _copy_bytes(one.copied, file.fileno())
                file.seek(0, os.SEEK_END)
            elif one.produce is not None:
                tensor = one.produce()
                if tensor.dtype != one.dtype or tuple(tensor.shape) != one.shape:
                    raise MergeError(
                        f"{one.key}: came out as {tensor.dtype} of shape {tuple(tensor.shape)}, "
                        f"{one.dtype} of shape {one.shape} was planned"
                    )
                flat = tensor.contiguous().view(-1).view(torch.uint8)
                file.write(flat.numpy().data)


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


def _copy_bytes(source: Stored, target: int) -> None:
    """Append a tensor's bytes, from file to file without a copy in this process."""
    with source.path.open("rb", buffering=0) as file:
        done = 0
        while done < source.length:
            sent = os.sendfile(target, file.fileno(), source.start + done, source.length - done)
            if sent == 0:
                raise MergeError(f"{source.path}: ends in the middle of {source.key}")
            done += sent


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
