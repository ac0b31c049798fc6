"""A CUDA device that computes nothing: the real code on fake tensors, on a machine without a GPU.

What it shows: operations between devices that cannot be mixed, waits of the host for the device
(host syncs), copies from the host, and kernels, each with the line that caused it. What it cannot
show: values, kernels that do not exist, memory of an allocator, time.

Loading it changes how torch sees CUDA for the rest of the process, so that it belongs in one of
its own.
"""

from __future__ import annotations

import copy
import linecache
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import cpp_extension
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from lora_kit.preflight.fake_model import empty_like, replace_tensors

CUDA = torch.device("cuda", 0)
SOURCE = Path(__file__).with_name("fake_cuda.cpp")
# Folder of all installed packages, and of the package under test.
PACKAGE = "lora_kit"
aten = torch.ops.aten


def compiler() -> str | None:
    """Return the path of the C++ compiler; `None` if there is none."""
    return shutil.which("g++")


def build(folder: Path) -> Path:
    """Build the device of `fake_cuda.cpp`, which takes 3 s, and return the library's path."""
    library = folder / "fake_cuda.so"
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    libraries = [flag for path in cpp_extension.library_paths() for flag in _linked(path)]
    command = [
        "g++",
        "-shared",
        "-fPIC",
        "-std=c++17",
        "-O0",
        "-w",
        str(SOURCE),
        "-o",
        str(library),
    ]
    subprocess.run([*command, *includes, *libraries, "-lc10", "-ltorch_cpu"], check=True)
    return library


def _linked(path: str) -> list[str]:
    return [f"-L{path}", f"-Wl,-rpath,{path}"]


def environment(library: Path) -> dict[str, str]:
    """Return the environment of a process with the device, which torch looks for only once."""
    return {**os.environ, "LD_PRELOAD": str(library)}


def show() -> None:
    """Let torch's Python side, transformers and Accelerate find the device from here on."""
    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.is_bf16_supported = lambda *_, **__: True
    cuda.device_count = lambda: 1
    cuda.current_device = lambda: 0
    cuda.set_device = lambda _device: None
    cuda.synchronize = lambda *_: None
    cuda.amp.common.amp_definitely_not_available = lambda: False
    module: Any = torch.nn.Module
    module._apply = _replace_tensors
    fake: Any = FakeTensor
    fake.tolist = _after_one_copy(fake.tolist)
    # Fake tensors cannot be copied deeply in torch 2.13; `Prefix.repeated` copies a cache.
    fake.__deepcopy__ = lambda tensor, _memo: tensor.detach().clone()


def _after_one_copy(
    tolist: Callable[[torch.Tensor], list[Any]],
) -> Callable[[torch.Tensor], list[Any]]:
    """Return `tolist` that copies a tensor to the host first, as it does for real ones."""
    return lambda tensor: tolist(tensor.cpu())


def _replace_tensors(
    module: torch.nn.Module, convert: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
) -> torch.nn.Module:
    """Convert a module's tensors as `Module._apply` does, which cannot swap fake parameters."""
    for child in module.children() if recurse else ():
        child._apply(convert)
    for name, parameter in module._parameters.items():
        if parameter is not None and (new := convert(parameter)) is not parameter:
            module._parameters[name] = torch.nn.Parameter(new, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else convert(buffer)
    return module


def to_fake_cuda(model: torch.nn.Module, mode: FakeCudaMode) -> None:
    """Replace a model's parameters and buffers by fake ones on the device; tied ones stay tied."""
    with mode:
        replace_tensors(model, _fake)


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    fake = empty_like(tensor, CUDA)
    if state := getattr(tensor, "quant_state", None):  # 4-bit weights of bitsandbytes
        fake.quant_state = _fake_state(state)  # type: ignore[attr-defined]
    return fake


def _fake_state(state: Any) -> Any:
    """Return a copy of bitsandbytes' constants of a weight, on the device."""
    made = copy.copy(state)
    for name, value in vars(state).items():
        if isinstance(value, torch.Tensor):
            setattr(made, name, torch.empty(value.shape, dtype=value.dtype, device=CUDA))
    if state.nested:
        made.state2 = _fake_state(state.state2)
    return made


class FakeCudaMode(FakeTensorMode):
    """Fake tensors on a device that torch believes to be there, and that holds no constants."""

    avoid_device_init = True

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count waits, copies and kernels of the fake device, and answer what depends on data.

    A number that is read is 1, and `nonzero` finds every place.

    Attributes:
        waits: host syncs by kind and line.
        copies: copies from the host that it does not wait for, by line.
        kernels: operations on the device, by name.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pinned = WeakIdKeyDictionary()
        self.clear()

    def clear(self) -> None:
        """Forget what was counted."""
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_pin_memory":
            pinned = args[0].clone()
            self._pinned[pinned] = True
            return pinned
        self._count_transfers(name, args, kwargs)
        if name in ANSWERS and (is_cuda(args[0]) or not _is_constant(args[0])):
            return ANSWERS[name](args[0])
        if name in INDEXING and any(_is_mask(index) for index in args[1]):
            args = (args[0], _places(args[1]), *args[2:])
        result = func(*args, **kwargs)
        if not func.is_view and any(is_cuda(leaf) for leaf in tree_leaves(result)):
            self.kernels[name] += 1
        return result

    def _count_transfers(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in ANSWERS and is_cuda(args[0]):
            self.waits[f"{name} @ {caller()}"] += 1
        elif name == "_to_copy" and kwargs.get("device") is not None:
            to_cuda = torch.device(kwargs["device"]).type == "cuda"
            self._count_copy(args[0], to_cuda, bool(kwargs.get("non_blocking")))
        elif name == "copy_":
            self._count_copy(args[1], is_cuda(args[0]), bool(len(args) > 2 and args[2]))
        elif name in INDEXING and is_cuda(args[0]):
            for index in args[1]:
                if isinstance(index, torch.Tensor) and not is_cuda(index):
                    self._count_copy(index, True, False)
                elif _is_mask(index):
                    self.waits[f"mask as an index @ {caller()}"] += 1

    def _count_copy(self, source: torch.Tensor, to_cuda: bool, non_blocking: bool) -> None:
        if is_cuda(source) == to_cuda:
            return
        if to_cuda and non_blocking and source in self._pinned:
            self.copies[caller()] += 1
        else:
            self.waits[f"copy to the {'device' if to_cuda else 'host'} @ {caller()}"] += 1


def is_cuda(value: Any) -> bool:
    """Return true for a tensor on the fake device."""
    return isinstance(value, torch.Tensor) and value.device.type == "cuda"


def _is_constant(tensor: torch.Tensor) -> bool:
    """Return true for a tensor on the host with data: a real one, or a constant of the mode."""
    return not isinstance(tensor, FakeTensor) or tensor.constant is not None


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype is torch.bool


def _places(indices: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Return indices in which a mask is replaced by places, as many as it has."""
    replaced: list[torch.Tensor | None] = []
    for index in indices:
        if index is not None and _is_mask(index):
            places = torch.zeros(index.numel(), dtype=torch.int64, device=index.device)
            replaced += [places] * index.dim()
        else:
            replaced.append(index)
    return replaced


def _item(tensor: torch.Tensor) -> bool | int | float:
    return True if tensor.dtype is torch.bool else 1.0 if tensor.dtype.is_floating_point else 1


def _nonzero(tensor: torch.Tensor) -> torch.Tensor:
    shape = (tensor.numel(), tensor.dim())
    return torch.empty(shape, dtype=torch.int64, device=tensor.device)


# Operations whose result depends on data; for those on the device the host waits.
ANSWERS = {
    "_local_scalar_dense": _item,
    "nonzero": _nonzero,
    "equal": lambda _: True,
    "is_nonzero": lambda _: True,
}


INDEXING = ("index", "index_put", "index_put_")


def caller() -> str:
    """Return file, function and text of the innermost line of the package on the stack.

    Without one, those of the innermost line outside of torch, such as transformers' trainer.
    """
    outside = ""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if f"/{PACKAGE}/" in path and "/site-packages/" not in path:
            return _line(frame, path.split(f"/{PACKAGE}/", 1)[1])
        if not outside and "/torch/" not in path and path != __file__:
            outside = _line(frame, path.rsplit("/site-packages/", 1)[-1])
        frame = frame.f_back
    return outside


def _line(frame: FrameType, path: str) -> str:
    text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return f"{path} {frame.f_code.co_name}: {text}"


@contextmanager
def on_fake_cuda(mode: FakeCudaMode) -> Iterator[Watch]:
    """Run everything inside on fake tensors, and yield the counts."""
    watch = Watch()
    with mode, watch:
        yield watch
