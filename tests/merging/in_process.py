"""Run a merged model in this process, which has already imported the libraries.

tests/merging/test_verify.py and tests/integration/test_run.py run it in a new process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_kit.merging import verify
from lora_kit.merging.predictions import ComparisonInputs, ModelOutputs
from lora_kit.merging.reloaded import ComputeSettings, compute_outputs_with_cpu_fallback


def compute_here(
    merged: Path, inputs: ComparisonInputs, settings: ComputeSettings, _folder: Path
) -> ModelOutputs:
    return compute_outputs_with_cpu_fallback(merged, inputs, settings)


@contextmanager
def in_this_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(verify, "compute_outputs_in_subprocess", compute_here)
        yield
