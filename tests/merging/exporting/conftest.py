"""Small random model for the tests of exports."""

from pathlib import Path

import pytest

from tests.merging.exporting.small_model import random_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return random_model(tmp_path / "model")
