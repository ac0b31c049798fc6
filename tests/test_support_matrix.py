"""README.md's support matrix is what the code's rules and the tests' marks say."""

import subprocess
import sys

from tests.support_matrix import ROOT, in_readme


def test_the_support_matrix_of_the_readme_is_current() -> None:
    # In a process of its own: pytest collects there, and plugins are loaded once.
    command = [sys.executable, "-m", "tests.support_matrix"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    made = done.stdout[done.stdout.index("Nothing here has run") :].strip()
    assert made == in_readme(), "run: python -m tests.support_matrix --write"
