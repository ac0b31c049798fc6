"""The arms of an evaluation as models: which weights they are, and how they are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from lora_kit.adapter.attach import adapter_sha256
from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.merging.record import MERGE_RECORD, merged_identity
from lora_kit.merging.reloaded import Computing, reload
from lora_kit.modeling.generation import stop_token_ids
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.recipe.sections import MERGED_ARMS
from lora_kit.runs.session import Session, Subject
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import read_json
from lora_kit.runtime.hashes import file_sha256, json_sha256

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
            "lora-kit compare-backbones probes the features of a backbone"
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
    return models


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
        Arm("base", base, adapter_disabled, kept=True),
        Arm("adapter", adapted, nullcontext),
        Arm("fewshot", base, adapter_disabled, roles=("gain",), kept=True),
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
