"""Memory of a device: free now, with what this process holds, within the limit of its group."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from lora_kit.preflight import device
from lora_kit.preflight.device import MemoryUser, find_memory
from lora_kit.preflight.memory import CUDA_BASE
from lora_kit.runtime import available_memory
from lora_kit.runtime.available_memory import LIMITS, group_limits

CPU = torch.device("cpu")


@pytest.fixture
def no_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(available_memory, "CGROUPS", tmp_path / "none")


@pytest.mark.usefixtures("no_groups")
def test_main_memory_is_what_is_free_and_what_this_process_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = SimpleNamespace(total=100 << 30, available=10 << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    held = SimpleNamespace(rss=5 << 30, shared=2 << 30)
    own = SimpleNamespace(memory_info=lambda: held)
    monkeypatch.setattr(psutil, "Process", lambda: own)
    monkeypatch.setattr(psutil, "process_iter", lambda _: [])
    found = find_memory(CPU)
    assert (found.total, found.available) == (100 << 30, 13 << 30)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_the_limit_of_a_group_counts_with_those_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    own = Path("/proc/self/cgroup").read_text().splitlines()
    groups = {line.split(":", 2)[2] for line in own if line.split(":")[1] in ("", "memory")}
    mount = tmp_path if kind == "v2" else tmp_path / "memory"
    names = LIMITS[kind == "v1"]
    inner = mount / max(groups, key=len).lstrip("/") / "step"
    for folder, limit, used in ((inner.parent, "8000", "5000"), (mount, "max", "9000")):
        folder.mkdir(parents=True, exist_ok=True)
        if folder == mount and folder == inner.parent and limit == "max":
            continue  # a process in the root group
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 1000\n")
    assert list(group_limits(tmp_path)) == [(8000, 4000)]
    monkeypatch.setattr(available_memory, "CGROUPS", tmp_path)
    assert find_memory(CPU).total == 8000


@pytest.mark.usefixtures("no_groups")
def test_other_processes_that_hold_memory_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "NAMED_BYTES", 100_000_000)
    monkeypatch.setattr(device, "MAX_NAMED", 10**6)
    hold = "import sys; held = b'x' * 200_000_000; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        other.stdout.readline()
        users = {one.process: one for one in find_memory(CPU).users}
        other.communicate()
    assert users[other.pid].bytes > 200_000_000
    assert users[other.pid].name.startswith("python")
    assert os.getpid() not in users


def test_a_gpu_is_asked_for_what_is_free_and_who_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply of nvidia-smi; names can hold commas, and this process is left out."""
    said = f"11, /usr/bin/vllm, serve, 40000\n{os.getpid()}, python, 9000\n12, x, [N/A]\n"
    asked: list[str] = []

    def run(command: list[str], **_: Any) -> Any:
        asked.extend(command)
        return SimpleNamespace(stdout=said)

    monkeypatch.setattr(device.subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (20 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 5 << 30)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="abc-1")
    )
    found = find_memory(torch.device("cuda", 1))
    assert (found.total, found.available) == (80 << 30, (25 << 30) + CUDA_BASE)
    assert found.users == (MemoryUser(11, "vllm, serve", 40000 << 20),)
    assert "--id=GPU-abc-1" in asked


def test_a_gpu_whose_processes_no_one_tells_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(device.subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (20, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="a"))
    assert find_memory(torch.device("cuda")).users == ()
