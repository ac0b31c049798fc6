"""A recipe up to step 1, for `plan`, which shows it, and for `train`, which goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_kit.adapters import attach
from lora_kit.backbone import Backbone
from lora_kit.data.audit.audit import audit
from lora_kit.data.audit.findings import Audit
from lora_kit.data.dataset import prepare, validation_rows
from lora_kit.data.labelled import as_read
from lora_kit.data.prepared import PreparedData
from lora_kit.data.row_sets import Rows
from lora_kit.evaluation.audited import audited_items
from lora_kit.evaluation.engine.work import Work
from lora_kit.preflight.checks import Checked, run_checks
from lora_kit.preflight.situation import Situation
from lora_kit.recipe import Recipe
from lora_kit.training.retention.texts import RetentionTexts, refuse_items

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Ready:
    """What a training takes, read, checked and audited.

    Attributes:
        model: the backbone with its adapter.
        data: what is trained on.
        held_out: whose loss is watched.
        texts: by which retention is measured or held.
        checked: the checks that were run, and what they warn of.
        audit: what was found in the rows; nothing of it is refused yet.
    """

    model: PeftModel
    data: PreparedData
    held_out: PreparedData
    texts: RetentionTexts
    checked: Checked
    audit: Audit


def make_ready(
    recipe: Recipe, backbone: Backbone, rows: Rows, replay: int, work: Sequence[Work]
) -> Ready:
    """Tokenize rows, attach the adapter, check and audit.

    Args:
        recipe: what to do.
        backbone: what it is done to; the adapter is attached to it.
        rows: that are trained on.
        replay: how many of them are replayed.
        work: the tasks that the adapter will be measured by.

    Raises:
        LoraKitError: of the first thing that is refused.
    """
    tokenizer, objective = backbone.tokenizer, recipe.training.objective
    classes = backbone.head.classes if backbone.head else ()
    held_out_rows = validation_rows(recipe.data, recipe.seed)
    data = prepare(rows, tokenizer, recipe.data, replay, objective, classes)
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
    found = audit(rows, examples, items, held_out_rows, tokenizer, limits)
    refuse_items(texts, items, limits.leakage)
    return Ready(model, data, held_out, texts, checked, found)
