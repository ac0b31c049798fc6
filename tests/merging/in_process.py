"""Run a merged model in this process, or in a fork, which have already imported the libraries.

tests/merging/test_verify.py and tests/integration/test_run.py run it in a new interpreter.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lora_kit.merging import verify
from lora_kit.merging.predictions import ComparisonInputs, ModelOutputs
from lora_kit.merging.reloaded import ComputeSettings, compute_outputs_with_cpu_fallback
from tests.plain_process import run_new

MODULE = "lora_kit.merging.reloaded"


def compute_here(
    merged: Path, inputs: ComparisonInputs, settings: ComputeSettings, _folder: Path
) -> ModelOutputs:
    return compute_outputs_with_cpu_fallback(merged, inputs, settings)


@contextmanager
def in_this_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(verify, "compute_outputs_in_subprocess", compute_here)
        yield


def _fork(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
    assert command[:3] == [sys.executable, "-m", MODULE]
    run_new(f"import runpy; runpy.run_module({MODULE!r}, run_name='__main__')", *command[3:])
    return subprocess.CompletedProcess(command, 0, "", "")


@contextmanager
def in_a_fork() -> Iterator[None]:
    """Run merged models in new processes, which have nothing but the files and the arguments."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(subprocess, "run", _fork)
        yield
