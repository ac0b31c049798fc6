"""A recipe up to step 1, for `plan`, which shows it, and for `train`, which goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.data.audit.audit import audit
from lora_kit.data.audit.findings import Audit
from lora_kit.data.dataset import prepare, validation_rows
from lora_kit.data.labelled import as_read
from lora_kit.data.row_sets import Rows
from lora_kit.data.training_data import TrainingData
from lora_kit.evaluation.audited import audited_items
from lora_kit.evaluation.engine.work import Work
from lora_kit.preflight.checks import Checked, run_checks
from lora_kit.preflight.situation import Situation
from lora_kit.recipe.recipe import Recipe
from lora_kit.training.retention.texts import RetentionTexts, refuse_items
from lora_kit.training.self_distillation.rows import ReadRows

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Ready:
    """What a training takes, read, checked and audited.

    Attributes:
        model: the backbone with its adapter.
        data: what is trained on, and held-out rows, whose loss is watched.
        texts: by which retention is measured or held.
        checked: the checks that were run, and what they warn of.
        audit: what was found in the rows; nothing of it is refused yet.
    """

    model: PeftModel
    data: TrainingData
    texts: RetentionTexts
    checked: Checked
    audit: Audit


def make_ready(
    recipe: Recipe, backbone: Backbone, sources: Rows, read: ReadRows, work: Sequence[Work]
) -> Ready:
    """Tokenize rows, attach the adapter, check and audit.

    Args:
        recipe: what to do.
        backbone: what it is done to; the adapter is attached to it.
        sources: the rows of `data.train`.
        read: the rows that are trained on.
        work: the tasks that the adapter will be measured by.

    Raises:
        LoraKitError: of the first thing that is refused.
    """
    tokenizer, objective = backbone.tokenizer, recipe.training.objective
    classes = backbone.head.classes if backbone.head else ()
    held_out_rows = validation_rows(recipe.data, recipe.seed)
    data = prepare(read.rows, tokenizer, recipe.data, read.replay, objective, classes)
    held_out = prepare(held_out_rows, tokenizer, recipe.data, classes=classes)
    texts = RetentionTexts.read(recipe, tokenizer)
    model = attach(backbone, recipe.adapter, recipe.seed)
    situation = Situation(
        recipe,
        backbone=backbone,
        model=model,
        examples=data.examples,
        held_out=held_out.examples,
        texts=texts,
    )
    checked = run_checks(situation)
    # What is wrong with an item shows only when it is tokenized.
    items, limits = audited_items(work), recipe.data.audit
    examples = as_read(data.examples) if objective == "classification" else data.examples
    found = audit(read.rows, examples, items, held_out_rows, tokenizer, limits)
    refuse_items(texts, items, limits.leakage)
    whole = TrainingData(sources, read.rows, read.replay, data, held_out_rows, held_out)
    return Ready(model, whole, texts, checked, found)
