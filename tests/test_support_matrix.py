"""README.md's support matrix is what the code's rules and the tests' marks say."""

from pathlib import Path

from tests.gpu.first_look import planned_steps
from tests.gpu.runner import Runner
from tests.plain_process import run_new
from tests.support_matrix import ROOT, UNSEEN, in_readme


def test_the_support_matrix_of_the_readme_is_current() -> None:
    # In a process of its own: pytest collects there, and plugins are loaded once.
    printed = run_new("from tests.support_matrix import main\nmain()")
    made = printed[printed.index("Nothing here has run") :].strip()
    assert made == in_readme(), "run: python -m tests.support_matrix --write"


def test_what_only_a_gpu_can_show_names_files_and_steps_that_exist(tmp_path: Path) -> None:
    steps = planned_steps(Runner(tmp_path, 1.0), tmp_path, "tiny", tmp_path)
    assert {one.step for one in UNSEEN} <= {"", *(step.name for step in steps)}
    assert all((ROOT / one.stand_in).exists() for one in UNSEEN)
