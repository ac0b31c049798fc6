"""The README of the launch files agrees with the estimates and the existing files."""

import re
from pathlib import Path

import pytest

from tests.benchmarks.placement import cell, header, models, row

FOLDER = Path(__file__).parents[2] / "accelerate_configs"
README = (FOLDER / "README.md").read_text()


def test_every_file_is_in_the_readme_and_every_file_of_it_is_there() -> None:
    there = {path.name for path in FOLDER.glob("*.yaml")}
    there |= {f"slurm/{path.name}" for path in FOLDER.glob("slurm/*")}
    # Recipes of the reader are called mine.yaml.
    named = set(re.findall(r"`((?:slurm/)?[\w.-]+\.(?:yaml|sbatch))`", README))
    assert named == there
    assert header() in README


@pytest.mark.slow
@pytest.mark.parametrize("model", models())
def test_the_table_is_what_is_estimated(model: str) -> None:
    assert row(model) in README


@pytest.mark.slow
def test_a_model_that_fits_whole_is_not_divided() -> None:
    """Data parallelism exchanges only the adapter's gradients and no weights."""
    from tests.benchmarks.placement import HARDWARE, ROOM, taken

    eight = next(one for one in HARDWARE if one.name == "8 x 80 GB")
    assert taken("8B", "none", "fsdp2.yaml", 8) < taken("8B", "none", "ddp.yaml", 8)
    assert taken("8B", "none", "ddp.yaml", 8) < ROOM * eight.memory
    assert cell("8B", eight).startswith("`ddp.yaml`")


@pytest.mark.slow
def test_a_70b_in_4_bits_fits_on_four_small_gpus_and_on_two_with_shards_in_main_memory() -> None:
    from tests.benchmarks.placement import HARDWARE

    two, four = (next(one for one in HARDWARE if one.name == f"{n} x 24 GB") for n in (2, 4))
    assert cell("70B", two).startswith("`fsdp2-qlora-offload.yaml`, nf4")
    assert cell("70B", four).startswith("`fsdp2-qlora.yaml`, nf4")
