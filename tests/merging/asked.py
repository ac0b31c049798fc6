"""A merged model that is asked in this process, which has the libraries that a new one imports.

In a new process it is asked in tests/merging/test_verify.py and tests/integration/test_run.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_kit.merging import verify
from lora_kit.merging.answers import Answers, Questions
from lora_kit.merging.reloaded import Computing, answer_where_it_fits


def asked_here(merged: Path, questions: Questions, computing: Computing, _folder: Path) -> Answers:
    return answer_where_it_fits(merged, questions, computing)


@contextmanager
def in_this_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(verify, "answer_of_files", asked_here)
        yield
