"""Inputs of a training that do not depend on how it is trained: backbone, rows and items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.data.dataset import open_rows
from lora_kit.data.head_targets import head_outputs
from lora_kit.data.row_sets import Rows
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.stopping import Stopping
from lora_kit.evaluation.suite import load_suites
from lora_kit.evaluation.thoughts import Thinking
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sections import FEWSHOT
from lora_kit.training.head_rows.read import changes_rows

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class LoadedInputs:
    """Inputs that recipes share if only their training differs.

    Attributes:
        backbone: backbone without an adapter.
        sources: rows of `data.train`.
        work: tokenized items of the suites.
        take_off: function that takes the adapter off the backbone after the training, so that
            another one can be attached.
    """

    backbone: Backbone
    sources: Rows
    work: Sequence[Work]
    take_off: Callable[[PeftModel], None] | None = None


def load_inputs(recipe: Recipe) -> LoadedInputs:
    """Load the backbone, and read the rows and the items of the suites.

    Raises:
        LoraKitError: if one of them cannot be read.
    """
    changes_rows(recipe)  # refuses what cannot be done
    suites = load_suites(recipe.evaluation.suites)
    sources = open_rows(recipe.data, recipe.seed, recipe.training.objective)
    outputs = head_outputs(sources, recipe)
    backbone = load(resolve(recipe.backbone), recipe.backbone, outputs)
    shots = recipe.evaluation.shots if FEWSHOT in recipe.evaluation.arms else 0
    stopping = Stopping.of(recipe.evaluation)
    thinking = Thinking.of(recipe.evaluation)
    work = plan_work(suites, backbone, shots, sources if shots else (), stopping, thinking)
    return LoadedInputs(backbone, sources, work)
