"""Arms that are language models: identity of their weights, and loading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_kit.adapter.saved import adapter_sha256
from lora_kit.adapter.vocabulary import resized_rows
from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.merging.record import MERGE_RECORD, merged_identity
from lora_kit.merging.reloaded import (
    ComputeSettings,
    load_merged,
    loaded_dtype,
    stored_dtype,
)
from lora_kit.modeling.generation import stop_token_ids
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.modeling.precision import tf32_products
from lora_kit.recipe.sections import FEWSHOT, MERGED_ARMS, PROBE, RUN_ONLY_ARMS
from lora_kit.runs.session import Session, Subject
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import read_json
from lora_kit.runtime.hashes import changed_files, json_sha256


def loaded_arms(subject: Subject, names: Sequence[str]) -> list[LoadedArms]:
    """Return the arms that are models, grouped by the model that is loaded.

    Raises:
        EvaluationError: if an arm needs a classifier, a run, or a merged model that is missing.
    """
    session = subject.session
    if PROBE in names:
        raise EvaluationError(
            f"{subject.adapter}: arms: probe needs a classifier (got a language model). Fix: "
            "remove the arm; `lora-kit compare-backbones` probes the features of a backbone"
        )
    require_run(subject, names)
    models = [_on_backbone(subject, names)]
    if session is not None:
        models += [merged_arm(session, arm) for arm in MERGED_ARMS if arm in names]
    return models


def require_run(subject: Subject, names: Sequence[str]) -> None:
    """Refuse with EvaluationError an arm that needs a run, for an adapter without one."""
    needing = [name for name in names if name in RUN_ONLY_ARMS]
    if subject.session is None and needing:
        raise EvaluationError(
            f"{subject.adapter}: arms: {needing[0]} needs the recipe and the data of a run (got an "
            "adapter without a run). Fix: give the run directory, or remove the arm"
        )


def base_identity(backbone: Backbone) -> str:
    """Return a digest of everything that outputs of the base depend on."""
    rows = resized_rows(backbone.model)
    return json_sha256(
        [
            backbone.fingerprint.digest,
            # Attention implementations differ in the last digits.
            backbone.spec.attention,
            # Stop tokens and the other settings of generation.
            stop_token_ids(backbone),
            backbone.model.generation_config.to_diff_dict(),
            *adapter_tokenizer_identity(backbone),
            # Rows that an adapter added or removed change every probability a little.
            *([] if rows is None else [rows]),
        ]
    )


def adapter_tokenizer_identity(backbone: Backbone) -> list[str]:
    """Return the digest of a tokenizer that the adapter brought; none for the backbone's own."""
    return [] if backbone.adapter_tokenizer is None else [backbone.adapter_tokenizer]


def _on_backbone(subject: Subject, names: Sequence[str]) -> LoadedArms:
    base = base_identity(subject.backbone)
    adapted = json_sha256([base, adapter_sha256(subject.adapter)])
    arms = [
        Arm("base", base, adapter_disabled, cached=True),
        Arm("adapter", adapted, nullcontext),
        Arm(FEWSHOT, base, adapter_disabled, roles=("gain",), cached=True),
    ]
    return LoadedArms(
        lambda: subject.model,
        tuple(arm for arm in arms if arm.name in names),
        drift_identity=adapted,
    )


def merged_facts(subject: Subject, names: Sequence[str]) -> dict[str, str]:
    """Return the report's facts on the precision of the merged models among the arms."""
    session = subject.session
    merged = [arm for arm in MERGED_ARMS if arm in names]
    return {} if session is None else {f"Arm {arm}": _precision(session, arm) for arm in merged}


def _precision(session: Session, name: str) -> str:
    directory, computing = session.run.merged_as(name), _computing(session)
    stored, computed = stored_dtype(directory), loaded_dtype(directory, computing)
    on_gpu = _is_finer(directory, computing) and torch.device(computing.device).type == "cuda"
    described = (str(stored), str(computed) + (", products in TF32" if on_gpu else ""))
    return "stored in {}, computed in {}".format(*(d.removeprefix("torch.") for d in described))


def _computing(session: Session) -> ComputeSettings:
    return ComputeSettings.of(session.backbone.model, session.recipe.evaluation.gpus)


def _is_finer(directory: Path, computing: ComputeSettings) -> bool:
    """Return true if a merged model is stored in a finer dtype than the backbone computes in.

    It is loaded as it is stored, and its products may be as coarse as those of the backbone.
    """
    return loaded_dtype(directory, computing) != computing.dtype


@dataclass(frozen=True)
class MergedFiles:
    """A merged model of a run, and the digest of its files.

    Attributes:
        session: the run.
        directory: directory of the model.
        files: sha256 of each file, from the record of the merge.
    """

    session: Session
    directory: Path
    files: Mapping[str, str]

    @property
    def identity(self) -> str:
        """Digest of all files."""
        return merged_identity(dict(self.files))

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """Yield the directory, after the memory of the backbone was freed.

        Raises:
            EvaluationError: if a file has changed since the merge.
        """
        if changed := changed_files(self.directory, self.files):
            raise EvaluationError(
                f"{self.directory}: files have changed since the merge (got {', '.join(changed)}). "
                "Fix: merge again"
            )
        # The two need not fit into memory together.
        self.session.close()
        yield self.directory


def merged_files(session: Session, name: str) -> MergedFiles:
    """Return a merged model of a run.

    Raises:
        EvaluationError: if it is not merged yet.
    """
    directory = session.run.merged_as(name)
    record = directory / MERGE_RECORD
    if not record.is_file():
        raise EvaluationError(
            f"{session.run.root}: arms: {name} is not merged yet (got no {record.name}). Fix: run "
            f"`lora-kit merge {session.run.root}`"
        )
    return MergedFiles(session, directory, read_json(record, EvaluationError).get("files", {}))


def merged_arm(session: Session, name: str) -> LoadedArms:
    """Return a merged model of a run as an arm."""
    merged, computing = merged_files(session, name), _computing(session)
    active = tf32_products if _is_finer(merged.directory, computing) else nullcontext

    def load_unchanged() -> Any:
        with merged.opened() as directory:
            return load_merged(directory, computing)

    return LoadedArms(load_unchanged, (Arm(name, merged.identity, active),))
