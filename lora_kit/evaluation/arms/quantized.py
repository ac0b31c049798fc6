"""Arms that are the merged model, quantized as it is loaded, with the base quantized alike."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import load
from lora_kit.evaluation.arm_names import control_arm
from lora_kit.evaluation.arms.models import base_identity, merged_files
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.recipe.backbone import BackboneSpec, Quantization
from lora_kit.recipe.sections import MERGED_ARMS, QUANTIZED_ARMS
from lora_kit.runs.session import Session, Subject
from lora_kit.runtime.hashes import json_sha256


def loaded_quantized(subject: Subject, names: Sequence[str]) -> list[LoadedArms]:
    """Return the quantized arms, each followed by its control.

    There is no control where the backbone was trained on in the same quantization: the base is it.

    Raises:
        EvaluationError: if the run is not merged yet.
    """
    session = subject.session
    if session is None:
        return []
    models = []
    for quantization in (one for one in QUANTIZED_ARMS if one in names):
        models.append(_merged(session, quantization))
        if subject.backbone.spec.quantization != quantization:
            models.append(_control(subject, quantization))
    return models


def _merged(session: Session, quantization: Quantization) -> LoadedArms:
    merged, trained = merged_files(session, MERGED_ARMS[0]), session.backbone.spec

    def load_model() -> Any:
        with merged.opened() as directory:
            return _quantized(directory, trained, quantization)

    files = json_sha256([merged.identity, quantization])
    identity = json_sha256([files, str(trained.dtype), trained.attention])
    return LoadedArms(load_model, (Arm(quantization, identity, nullcontext, files=files),))


def _control(subject: Subject, quantization: Quantization) -> LoadedArms:
    base, trained = subject.backbone.files.directory, subject.backbone.spec

    def load_model() -> Any:
        # The two need not fit into memory together.
        subject.close()
        return _quantized(base, trained, quantization)

    identity = json_sha256([base_identity(subject.backbone), quantization])
    return LoadedArms(load_model, (Arm(control_arm(quantization), identity, nullcontext),))


def _quantized(directory: Path, trained: BackboneSpec, quantization: Quantization) -> Any:
    """Return the model of a directory with the weights of its linear layers quantized."""
    spec = trained.model_copy(
        update={"model": str(directory), "revision": None, "quantization": quantization}
    )
    return load(resolve(spec), spec).model


def quantized_facts(subject: Subject, names: Sequence[str]) -> dict[str, str]:
    """Return the report's facts on the quantized arms."""
    trained = subject.backbone.spec.quantization
    return {
        f"Arm {name}": f"the merged model in {name}; control: "
        + ("the base, which is in it too" if trained == name else control_arm(name))
        for name in QUANTIZED_ARMS
        if name in names
    }
