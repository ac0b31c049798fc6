import os
import subprocess
import sys
from pathlib import Path

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
