import os
import subprocess
import sys
from pathlib import Path

import psutil

from lora_kit.runtime.processes import _wait_until_ended

ROOT = Path(__file__).parents[2]


def test_the_main_process_goes_on_alone_when_the_others_have_ended(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    settings = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        # As `accelerate launch` says that the model is sharded.
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
    }
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", "-m", "tests.runtime.alone", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "went-on").read_text() == "True"
    assert (tmp_path / "gone").exists()


def test_a_process_that_has_ended_counts_as_gone_before_its_launcher_asks() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(ended.pid).status() == psutil.STATUS_ZOMBIE
    _wait_until_ended([ended.pid])
    ended.wait()
    _wait_until_ended([ended.pid])
