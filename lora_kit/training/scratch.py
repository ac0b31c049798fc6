"""The arm `scratch`: the recipe's adapter, trained on weights that were never pretrained."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_kit.adapter.attach import attach, attach_saved
from lora_kit.adapter.initial_factors import initialise
from lora_kit.adapter.saved import ADAPTER_WEIGHTS, read_saved_head
from lora_kit.backbone.encoder_decoder import language_model_class
from lora_kit.backbone.files import BackboneFiles
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.backbone.load import Backbone, load
from lora_kit.backbone.open_files import build_model, open_config
from lora_kit.data.dataset import prepare, validation_rows
from lora_kit.data.training_data import TrainingData
from lora_kit.evaluation.arms.text_heads import deciding
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.identity import training_fields
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import RetentionSpec
from lora_kit.recipe.sections import SCRATCH
from lora_kit.runs.directory import RunDirectory
from lora_kit.runs.session import Session
from lora_kit.runtime.console import say
from lora_kit.runtime.hashes import json_sha256
from lora_kit.runtime.temporaries import hidden_beside
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.retention.texts import RetentionTexts
from lora_kit.training.target_texts import TargetTexts
from lora_kit.training.trainer import run_training

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


def scratch_arm(session: Session, rows: Callable[[], TrainingData]) -> LoadedArms:
    """Return the arm; its adapter is trained on first use, unless the run already holds one.

    Args:
        session: the run.
        rows: returns the run's training rows; called only if there is something to train.
    """
    trained = training_fields(session.recipe.model_dump(mode="json"))
    described = [session.backbone.fingerprint.config, trained]
    arm = Arm(SCRATCH, json_sha256(described), nullcontext, roles=("gain",))
    return LoadedArms(lambda: _trained_from_scratch(session, rows), (arm,))


def _trained_from_scratch(session: Session, rows: Callable[[], TrainingData]) -> Any:
    recipe, run = _without_retention(session.recipe), RunDirectory(session.run.scratch)
    data = None if (run.adapter / ADAPTER_WEIGHTS).is_file() else rows()
    blank = Blank.of(session.backbone)
    texts = RetentionTexts.read(recipe, blank.tokenizer)
    target = TargetTexts.read(recipe, blank.tokenizer)
    # The two need not fit into memory together.
    session.close()
    # Some initializations read the backbone's files again: weights or tokenizer.
    with reinitialised(blank, recipe.seed) as backbone:
        if data is None:
            model = attach_saved(backbone, run.adapter)
        else:
            say(f"{run.root}: training the recipe on weights that were never pretrained")
            model = attach(backbone, recipe.adapter, recipe.seed)
            initial = texts.initial_rows(data.prepared.examples)
            initialise(model, backbone, recipe.adapter, initial, recipe.seed)
            run_training(_inputs(recipe, backbone, model, data, target, run))
            shutil.rmtree(run.checkpoints, ignore_errors=True)
        return deciding(model, read_saved_head(run.adapter), backbone)


def _inputs(
    recipe: Recipe,
    backbone: Backbone,
    model: PeftModel,
    data: TrainingData,
    target: TargetTexts | None,
    run: RunDirectory,
) -> TrainingInputs:
    """Return the inputs of the training; held-out rows for a head, which may choose by them."""
    held_out = data.held_out if backbone.head else None
    if backbone.head and held_out is None:
        held_out_rows = validation_rows(recipe.data, recipe.seed, recipe.training.objective)
        outputs = backbone.head.outputs
        held_out = prepare(held_out_rows, backbone.tokenizer, recipe.data, outputs=outputs)
    return TrainingInputs(
        recipe,
        backbone,
        model,
        data.prepared,
        held_out,
        run,
        row_weights=data.weights,
        target=target,
    )


def _without_retention(recipe: Recipe) -> Recipe:
    """Return a recipe without retention methods, since random weights hold nothing to retain.

    The texts from which the adapter is initialised stay: they belong to the adapter.
    """
    retention = RetentionSpec(corda=recipe.retention.corda)
    return recipe.model_copy(update={"retention": retention})


@dataclass(frozen=True)
class Blank:
    """Parts of a backbone from which one with random weights is made.

    Attributes:
        files: local files, of which the configuration is read.
        spec: backbone section with revision, dtype and attention resolved.
        tokenizer: tokenizer with a padding token.
        generation_config: transformers' generation configuration.
        outputs: outputs of the head; `None` for a language model.
    """

    files: BackboneFiles
    spec: BackboneSpec
    tokenizer: PreTrainedTokenizerBase
    generation_config: Any
    outputs: HeadOutputs | None

    @classmethod
    def of(cls, backbone: Backbone) -> Blank:
        """Return these parts of a loaded backbone, whose model may be freed afterwards."""
        outputs = backbone.head.outputs if backbone.head else None
        generation_config = getattr(backbone.model, "generation_config", None)
        return cls(backbone.files, backbone.spec, backbone.tokenizer, generation_config, outputs)


@contextmanager
def reinitialised(blank: Blank, seed: int) -> Iterator[Backbone]:
    """Yield a backbone of the same architecture, tokenizer and quantization with random weights.

    The backbone's files exist only inside the context.
    """
    from accelerate.utils import set_seed
    from transformers import AutoModel

    set_seed(seed)
    config = open_config(blank.files.directory)
    with hidden_beside(Path(tempfile.gettempdir()) / "lora-kit") as folder:
        # A head is new in any case, as for the pretrained weights.
        kind = AutoModel if blank.outputs else language_model_class(config)
        model = build_model(kind, config)
        if blank.outputs is None:
            # Only the generation configuration may define the BOS and EOS ids.
            model.generation_config = blank.generation_config
        model.save_pretrained(folder)
        blank.tokenizer.save_pretrained(folder)
        files = BackboneFiles(blank.files.reference, None, folder)
        yield load(files, blank.spec, blank.outputs)
