"""Rows of a recipe, for tests."""

from lora_kit.data.dataset import mix_replay, open_rows
from lora_kit.data.row_sets import Rows
from lora_kit.recipe.data import DataSpec
from lora_kit.recipe.objective import Objective


def training_rows(spec: DataSpec, seed: int, objective: Objective = "sft") -> tuple[Rows, int]:
    """Return the rows to train on and the number of replay rows among them."""
    return mix_replay(open_rows(spec, seed, objective), spec, seed)
