"""The job script of a sweep under a real Slurm of one node: two tasks, one sweep."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_kit.selection.sweep.record import read_trials
from tests.integration.slurm_node import Node, slurm_node, wait_for
from tests.integration.test_processes import ROOT, SETTINGS
from tests.pipeline.learned_sums import write_recipe
from tests.pipeline.test_sweep import RATES

pytestmark = pytest.mark.slow
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
TRIALS = 6


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with slurm_node(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The job script for a node without a GPU."""
    text = (ROOT / "accelerate_configs" / "slurm" / "sweep.sbatch").read_text()
    text, lines = re.subn(r"^#SBATCH --gpus-per-node=.*\n", "", text, flags=re.MULTILINE)
    assert lines == 1
    path = tmp_path / "sweep.sbatch"
    path.write_text(text)
    return path


def test_tasks_of_an_array_share_a_sweep_and_go_on_when_their_time_is_up(
    node: Node, script: Path, tiny: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, tiny)
    sweep = tmp_path / "sweep"
    small = ("--parsable", "--array=0-1", "--cpus-per-task=1", "--time=10")
    search = ("--over", RATES, "--trials", str(TRIALS), "--pruner", "none")
    arguments = (str(script), str(recipe), str(sweep), *search)
    job = node.run("sbatch", *small, *arguments, cwd=tmp_path, **SETTINGS)
    tasks = [f"{job}_{task}" for task in (0, 1)]
    wait_for(lambda: len(list((sweep / "records").glob("*.json"))) >= 1, "the first trial")
    node.run("scancel", "--signal=USR1", "--batch", tasks[0])
    wait_for(lambda: all(node.job(one)["JobState"] in ENDED for one in tasks), "their ends")
    said = [(tmp_path / f"lora-kit-sweep-{job}-{task}.log").read_text() for task in (0, 1)]
    assert [node.job(one)["JobState"] for one in tasks] == ["COMPLETED", "COMPLETED"], said
    assert node.job(tasks[0])["Restarts"] == "1"
    assert "All trials are made" in said[1]
    made = read_trials(sweep)
    assert len(made) == TRIALS
    assert sum(one.is_default for one in made) == 1
    assert json.loads((sweep / "sweep.json").read_text())["half_b"]
