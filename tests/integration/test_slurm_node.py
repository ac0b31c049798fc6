"""The job script under a real Slurm of one node: requeued, and on to the same adapter."""

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_kit.recipe.recipe import Recipe
from tests.integration.slurm_node import Node, slurm_node, wait_for
from tests.integration.test_processes import LORA_KIT, ROOT, SETTINGS, launched

pytestmark = pytest.mark.slow
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
CONFIGS = ROOT / "accelerate_configs"
# Its trap of USR1 leaves a trace.
TRAP = "trap 'time_is_up=true;"
# In place of the launcher: works until SIGTERM, as a checkpoint that takes too long.
SLOW_WORKER = """#!/bin/bash
trap 'exit 1' TERM
touch "$STARTED"
while :; do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with slurm_node(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The job script for two processes without a GPU, which this node does not have."""
    text = (CONFIGS / "slurm" / "train.sbatch").read_text()
    text, lines = re.subn(r"^#SBATCH --gpus-per-node=.*\n", "", text, flags=re.MULTILINE)
    text, counts = re.subn(r"^gpus=\$\{SLURM.*$", "gpus=2", text, flags=re.MULTILINE)
    text, traps = re.subn(re.escape(TRAP), f"{TRAP} touch $SIGNALLED;", text)
    assert (lines, counts, traps) == (1, 1, 1)
    path = tmp_path / "train.sbatch"
    path.write_text(text)
    return path


def submit(node: Node, script: Path, *options: str, **variables: str) -> str:
    """Submit the script for one machine and return the job's number."""
    signalled = str(script.parent / "signalled")
    variables |= {"CONFIG": str(CONFIGS / "ddp.yaml"), "SIGNALLED": signalled}
    small = ("--parsable", "--nodes=1", "--cpus-per-task=1", "--time=10", *options)
    arguments = (str(script), "tiny.yaml", str(script.parent / "run"))
    return node.run("sbatch", *small, *arguments, cwd=script.parent, **SETTINGS, **variables)


def sha256(run: Path) -> str:
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def losses(run: Path) -> list[tuple[float, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_when_time_is_up_the_job_is_requeued_and_goes_on_to_the_same_adapter(
    node: Node, script: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    training = tiny_recipe.training.model_copy(update={"epochs": 25.0, "save_steps": 1000})
    recipe = tiny_recipe.model_copy(update={"training": training})
    (tmp_path / "tiny.yaml").write_text(recipe.to_yaml())
    job = submit(node, script)
    log, metrics = tmp_path / f"lora-kit-{job}.log", tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 3, "step 4")
    node.run("scancel", "--signal=USR1", "--batch", job)
    wait_for(lambda: node.job(job)["JobState"] in ENDED, "the end of the job")
    said = log.read_text()
    assert node.job(job)["JobState"] == "COMPLETED", said
    assert node.job(job)["Restarts"] == "1"
    assert said.count("time is up; the job goes on from its checkpoint") == 1
    assert re.search(r"interrupted by .* Fix: rerun with --resume", said)
    assert said.count("resuming from step-") == 1
    whole = launched(2, *LORA_KIT, "train", "tiny.yaml", "--output", "whole")
    subprocess.run(whole, cwd=tmp_path, env=os.environ | SETTINGS, check=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert sha256(tmp_path / "run") == sha256(tmp_path / "whole")


@pytest.fixture
def slow(script: Path, tmp_path: Path) -> dict[str, str]:
    """Variables of a job whose launcher does not heed USR1."""
    launcher = tmp_path / "bin" / "accelerate"
    launcher.parent.mkdir()
    launcher.write_text(SLOW_WORKER)
    launcher.chmod(0o755)
    return {"STARTED": str(tmp_path / "started"), "FIRST": str(launcher.parent)}


def begun(node: Node, script: Path, slow: dict[str, str], *options: str) -> str:
    path = f"{slow['FIRST']}{os.pathsep}{node.environment['PATH']}"
    job = submit(node, script, *options, STARTED=slow["STARTED"], PATH=path)
    wait_for(Path(slow["STARTED"]).exists, "the launcher")
    return job


def test_a_job_that_is_cancelled_before_its_checkpoint_is_written_stays_cancelled(
    node: Node, script: Path, slow: dict[str, str]
) -> None:
    job = begun(node, script, slow)
    node.run("scancel", "--signal=USR1", "--batch", job)
    wait_for((script.parent / "signalled").exists, "the signal")
    node.run("scancel", job)
    wait_for(lambda: node.job(job)["JobState"] not in ("RUNNING", "COMPLETING"), "its end")
    assert node.job(job)["JobState"] == "CANCELLED"
    assert node.job(job)["Restarts"] == "0"


def test_a_job_whose_time_is_over_before_its_checkpoint_is_written_is_requeued(
    node: Node, script: Path, slow: dict[str, str]
) -> None:
    """USR1 comes from Slurm itself, and SIGTERM at the limit of a minute."""
    job = begun(node, script, slow, "--time=1", "--signal=B:USR1@30")
    wait_for(lambda: node.job(job)["Restarts"] == "1", "a requeued job")
    node.run("scancel", job)
    log = (script.parent / f"lora-kit-{job}.log").read_text()
    assert "DUE TO TIME LIMIT" in log
    assert log.count("time is up; the job goes on from its checkpoint") == 1
