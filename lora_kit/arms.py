"""The arms of an evaluation as models: which weights they are, and how they are loaded."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lora_kit.adapters import adapter_sha256, attach, attach_saved, switched_off
from lora_kit.backbone import Backbone, load
from lora_kit.backbone_files import BackboneFiles
from lora_kit.console import say
from lora_kit.data.dataset import training_rows
from lora_kit.data.rows import Row
from lora_kit.digests import file_sha256, json_sha256
from lora_kit.encoder_decoder import language_model_class
from lora_kit.errors import EvaluationError
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.evaluation.engine.run import stop_token_ids
from lora_kit.files import read_json
from lora_kit.merging.record import MERGE_RECORD, merged_identity
from lora_kit.merging.reloaded import Computing, reload
from lora_kit.recipe import MERGED_ARMS, Recipe
from lora_kit.run import RunDirectory
from lora_kit.session import Session, Subject
from lora_kit.trained_rows import same_rows
from lora_kit.training.initial_factors import initialise
from lora_kit.training.trainer import train as train_adapter

NEED_A_RUN = (*MERGED_ARMS, "scratch", "retrieval")


def loaded_arms(subject: Subject, names: Sequence[str]) -> list[LoadedArms]:
    """The arms that are models, those of one model together.

    Raises:
        EvaluationError: if an arm needs what there is not.
    """
    session = subject.session
    if "probe" in names:
        raise EvaluationError(
            f"{subject.adapter}: arm probe: chooses between classes, and this is a language model; "
            "lora-kit scout probes the features of a backbone"
        )
    if session is None:
        absent = [name for name in NEED_A_RUN if name in names]
        if absent:
            raise EvaluationError(
                f"{subject.adapter}: arm {absent[0]} needs a run, with its recipe and data; this "
                "is an adapter alone"
            )
    models = [_on_backbone(subject, names)]
    if session is not None:
        models += [_merged(session, arm) for arm in MERGED_ARMS if arm in names]
    if session is not None and "scratch" in names:
        models.append(_scratch(session))
    return models


def example_rows(recipe: Recipe) -> Sequence[Row]:
    """The rows that baselines learn from: those of the adapter, without its replay."""
    data = recipe.data.model_copy(update={"replay": None})
    return training_rows(data, recipe.seed, recipe.training.objective)[0]


def base_identity(backbone: Backbone) -> str:
    """Digest of all that answers of the base depend on."""
    return json_sha256(
        [
            backbone.fingerprint.digest,
            # Moves the last digits, and with them what may be compared with what.
            backbone.spec.attention,
            # Where a text ends, and all else that generation goes by.
            stop_token_ids(backbone),
            backbone.model.generation_config.to_diff_dict(),
        ]
    )


def _on_backbone(subject: Subject, names: Sequence[str]) -> LoadedArms:
    base = base_identity(subject.backbone)
    adapted = json_sha256([base, adapter_sha256(subject.adapter)])
    arms = [
        Arm("base", base, switched_off, kept=True),
        Arm("adapter", adapted, nullcontext),
        Arm("fewshot", base, switched_off, roles=("gain",), kept=True),
    ]
    return LoadedArms(
        lambda: subject.model, tuple(arm for arm in arms if arm.name in names), drifting=adapted
    )


def _merged(session: Session, name: str) -> LoadedArms:
    directory = session.run.merged_as(name)
    record = directory / MERGE_RECORD
    if not record.is_file():
        raise EvaluationError(
            f"{session.run.root}: arm {name}: not merged yet; run `lora-kit merge "
            f"{session.run.root}` first"
        )
    files: dict[str, str] = read_json(record, EvaluationError).get("files", {})
    arm = Arm(name, merged_identity(files), nullcontext)
    computing = Computing.of(session.backbone.model)

    def load_unchanged() -> Any:
        changed = [
            name
            for name, digest in files.items()
            if not (directory / name).is_file() or file_sha256(directory / name) != digest
        ]
        if changed:
            raise EvaluationError(
                f"{directory}: {', '.join(changed)}: changed since they were merged; merge again"
            )
        return reload(directory, computing)

    return LoadedArms(load_unchanged, (arm,))


def _scratch(session: Session) -> LoadedArms:
    left_out: dict[str, Any] = {
        **dict.fromkeys(("evaluation", "merge", "name"), True),
        # Stated later, a licence does not make it another training.
        "backbone": {"license"},
        "data": {
            "train": {"__all__": {"license"}},
            "validation": {"__all__": {"license"}},
            "replay": {"license"},
        },
    }
    trained = session.recipe.model_dump(mode="json", exclude=left_out)
    described = [session.backbone.fingerprint.config, trained]
    arm = Arm("scratch", json_sha256(described), nullcontext, roles=("gain",))
    return LoadedArms(lambda: _trained_from_scratch(session), (arm,))


def _trained_from_scratch(session: Session) -> Any:
    """The recipe's adapter on a backbone of random weights; trained unless it is there."""
    # Their files are read once more by what begins with the weights or the tokenizer.
    with reinitialised(session.backbone, session.recipe.seed) as backbone:
        return _trained_on(backbone, session)


def _trained_on(backbone: Backbone, session: Session) -> Any:
    recipe, run = session.recipe, RunDirectory(session.run.scratch)
    if (run.adapter / "adapter_model.safetensors").is_file():
        return attach_saved(backbone, run.adapter)
    say(f"{run.root}: training the recipe on weights that were never pretrained")
    data = same_rows(session, "scratch")
    model = attach(backbone, recipe.adapter, recipe.seed)
    initialise(model, backbone, recipe.adapter, data.examples, recipe.seed)
    train_adapter(recipe, backbone, model, data, None, run)
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    return model


@contextmanager
def reinitialised(backbone: Backbone, seed: int) -> Iterator[Backbone]:
    """The same architecture, tokenizer and quantization, with the weights it began from.

    Its files are there while it is open.
    """
    from accelerate.utils import set_seed
    from transformers import AutoConfig

    set_seed(seed)
    config = AutoConfig.from_pretrained(backbone.files.directory, local_files_only=True)
    with tempfile.TemporaryDirectory() as folder:
        model = language_model_class(config).from_config(config)
        # What it begins and ends with may be said there alone.
        model.generation_config = backbone.model.generation_config
        model.save_pretrained(folder)
        backbone.tokenizer.save_pretrained(folder)
        yield load(BackboneFiles(backbone.files.reference, None, Path(folder)), backbone.spec)
