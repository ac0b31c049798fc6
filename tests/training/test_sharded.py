"""Sharded weights: saved in full and sharded again."""

import ast
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_kit.training.checkpoints import OPTIMIZER, WEIGHTS
from tests.training.shard import STEPS, train

ROOT = Path(__file__).parents[2]
LAST = f"step-{STEPS:06d}"


def divided(*several: str) -> list[list[float]]:
    """Train in two processes, each with half of the weights; return the gradient norms."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.training.shard", *several],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("norms")]
    return [[float(norm) for norm in line.split()[1:]] for line in lines]


def same(one: Path, other: Path) -> None:
    for name in (WEIGHTS, OPTIMIZER):
        left, right = load_file(one / name), load_file(other / name)
        assert left.keys() == right.keys()
        for key, tensor in left.items():
            torch.testing.assert_close(right[key], tensor)


@pytest.mark.slow
def test_what_is_divided_is_written_whole_and_goes_on_in_any_number(tmp_path: Path) -> None:
    norms = train(tmp_path / "alone")
    alone = tmp_path / "alone" / LAST
    ours, _ = divided(f"{tmp_path}/divided", f"{tmp_path}/into-divided={alone}")
    assert ours == pytest.approx(norms, rel=1e-5)
    assert all(norm > 0 for norm in norms)
    same(alone, tmp_path / "divided" / LAST)
    train(tmp_path / "further", alone)
    train(tmp_path / "from-divided", tmp_path / "divided" / LAST)
    same(tmp_path / "further" / LAST, tmp_path / "from-divided" / LAST)
    same(tmp_path / "further" / LAST, tmp_path / "into-divided" / LAST)
    moved = load_file(tmp_path / "further" / LAST / WEIGHTS)
    assert not torch.equal(moved["2.weight"], load_file(alone / WEIGHTS)["2.weight"])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_deepspeed_has_the_names_that_are_imported_from_it() -> None:
    """Imports from DeepSpeed stand in functions, which nothing calls where it is missing."""
    imported = {
        (node.module, alias.name)
        for path in (ROOT / "lora_kit").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deepspeed")
        for alias in node.names
    }
    assert ("deepspeed.runtime.zero", "GatheredParameters") in imported
    for module, name in imported:
        assert hasattr(import_module(module), name), f"{module}.{name}"
