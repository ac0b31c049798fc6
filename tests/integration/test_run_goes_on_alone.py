"""`run` by several processes that train together, of which one evaluates, merges and releases."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_kit.pipeline import verify
from lora_kit.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
KEEP = """
name: keep
role: retention
tasks:
  - {name: prose, kind: loss, source: python-reference, limit: 12, max_length: 64, margin: 2}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "gpus"),
    [
        (["lora_kit"], 2),
        (["tests.standins.gloo_fsdp2", str(ROOT / "accelerate_configs" / "fsdp2.yaml")], 1),
    ],
    ids=["data parallel", "fsdp2"],
)
def test_two_processes_train_and_one_of_them_evaluates_merges_and_releases(
    tiny_recipe: Recipe, tmp_path: Path, program: list[str], gpus: int
) -> None:
    (tmp_path / "keep.yaml").write_text(KEEP)
    value = tiny_recipe.model_dump(mode="json")
    value["evaluation"] |= {"suites": [str(tmp_path / "keep.yaml")], "gpus": gpus}
    (tmp_path / "tiny.yaml").write_text(Recipe.model_validate(value).to_yaml())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = ["-m", *program, "run", "tiny.yaml", "--output", "run"]
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    for resumed in ((), ("--resume",)):
        done = subprocess.run(
            [*launcher, "--nproc-per-node", "2", *command, *resumed],
            cwd=tmp_path,
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Released:") == 1
        # In two processes, the second one would have written a journal's results, too.
        assert not list((tmp_path / "run" / "evaluation").glob(".journal*"))
        assert ("the training is already finished" in done.stderr) == bool(resumed)
    assert "follow from the ledger; its verdict is PASS" in verify(tmp_path / "run" / "release")
    verdict = json.loads((tmp_path / "run" / "evaluation" / "verdict.json").read_text())
    assert verdict["merged"] == "PASS"
