"""Job script under a minimal Slurm: started commands, and requeueing at the time limit."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "accelerate_configs" / "slurm" / "train.sbatch"
SCONTROL = """#!/bin/bash
[ "$1" = show ] && printf 'node1\\nnode2\\n' || echo "$@" >> "$CALLS/queued"
"""
# Like srun, pass a signal on to all processes of the step.
SRUN = """#!/bin/bash
shift
set -m
SLURM_NODEID=1 "$@" &
step=$!
trap 'kill -USR1 -- "-$step"' USR1
while kill -0 "$step" 2>/dev/null; do wait "$step"; status=$?; done
exit "$status"
"""
# Launcher without a handler for USR1, and worker with one.
ACCELERATE = """#!/bin/bash
printf '%s\\n' "$@" > "$CALLS/accelerate"
python3 -c '
import os, signal, sys, time
came = []
signal.signal(signal.SIGUSR1, lambda *_: came.append(1))
open(os.environ["CALLS"] + "/listening", "w").close()
until = time.monotonic() + float(os.environ["SECONDS_OF_WORK"])
while time.monotonic() < until and not came:
    time.sleep(0.02)
if came:
    time.sleep(0.3)
    open(os.environ["CALLS"] + "/checkpoint", "w").close()
sys.exit(75 if came else int(os.environ["STATUS"]))
' && exit 0 || exit 1
"""


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN), ("accelerate", ACCELERATE)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def begin(
    calls: Path, *arguments: str, nodes: int = 2, seconds: float = 0, status: int = 0
) -> subprocess.Popen[str]:
    slurm = {"SLURM_NNODES": str(nodes), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7"}
    own = {"CALLS": str(calls), "SECONDS_OF_WORK": str(seconds), "STATUS": str(status)}
    path = {"PATH": f"{calls}:{os.environ['PATH']}", "SLURM_GPUS_PER_NODE": "a100:4"}
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments],
        env=os.environ | slurm | own | path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launched(calls: Path) -> Sequence[str]:
    return (calls / "accelerate").read_text().splitlines()


def test_the_script_is_bash_without_mistakes_of_form() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0


def test_two_machines_meet_at_the_first_and_go_on_with_what_was_begun(calls: Path) -> None:
    assert begin(calls, "mine.yaml", "runs/mine", "--set", "seed=1").wait(60) == 0
    command = " ".join(launched(calls))
    assert command.startswith("launch --machine_rank 1 --config_file")
    assert "--num_machines 2 --num_processes 8" in command
    assert "--main_process_ip node1 --main_process_port 29500 --rdzv_backend c10d" in command
    assert command.endswith("-m lora_kit train mine.yaml --output runs/mine --resume --set seed=1")


def test_one_machine_has_nobody_to_meet(calls: Path) -> None:
    assert begin(calls, "mine.yaml", "runs/mine", nodes=1).wait(60) == 0
    assert "--rdzv_backend" not in launched(calls)
    assert "--num_machines 1 --num_processes 4" in " ".join(launched(calls))


def test_when_time_is_up_the_checkpoint_is_waited_for_and_the_job_is_queued_again(
    calls: Path,
) -> None:
    job = begin(calls, "mine.yaml", "runs/mine", seconds=30)
    deadline = time.monotonic() + 30
    while not (calls / "listening").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 1, "the launcher exits with 1, lora-kit with 75"
    assert (calls / "checkpoint").exists()
    assert (calls / "queued").read_text() == "requeue 7\n"


@pytest.mark.parametrize("status", [0, 2])
def test_what_ends_by_itself_is_not_queued_again(calls: Path, status: int) -> None:
    assert begin(calls, "mine.yaml", "runs/mine", status=status).wait(60) == min(status, 1)
    assert not (calls / "queued").exists()


def test_without_a_recipe_the_usage_is_told(calls: Path) -> None:
    job = begin(calls)
    assert job.wait(60) != 0
    assert job.stderr is not None
    assert "usage: sbatch train.sbatch RECIPE RUN" in job.stderr.read()
