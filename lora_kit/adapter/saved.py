"""Saved adapters: file names, hash and saving."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.adapter.saved_heads.kinds import KINDS, SavedHead
from lora_kit.adapter.saved_heads.masked import SavedMasked
from lora_kit.backbone.heads import FEATURE_EXTRACTION, HEAD_TASK_TYPES
from lora_kit.backbone.load import Backbone
from lora_kit.runtime.errors import AdapterError
from lora_kit.runtime.files import read_json, whole_directory, write_json
from lora_kit.runtime.hashes import file_sha256

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Backbone that the adapter was trained on, with its fingerprint.
BACKBONE = "backbone.json"
# File beside an adapter with a head: transformers' configuration with the names of the outputs.
CONFIG = "config.json"
# Configuration keys that state the origin of an adapter and do not change its outputs.
PROVENANCE_KEYS = (
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "inference_mode",
    "auto_mapping",
)


def adapter_sha256(directory: Path) -> str:
    """Return the sha256 of an adapter's weights and configuration, in hexadecimal.

    The configuration counts since the same weights with another alpha are another adapter.
    """
    config = read_json(directory / ADAPTER_CONFIG, AdapterError)
    hashed = {
        # PEFT writes sets as lists, in an order that varies.
        name: sorted(value) if isinstance(value, list) else value
        for name, value in config.items()
        if name not in PROVENANCE_KEYS
    }
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode())
    digest.update(file_sha256(directory / ADAPTER_WEIGHTS).encode())
    return digest.hexdigest()


def save_adapter(
    model: PeftModel,
    backbone: Backbone,
    directory: Path,
    weights: dict[str, torch.Tensor] | None = None,
    head: SavedHead | None = None,
) -> None:
    """Write a PEFT adapter directory, with the backbone's fingerprint in `backbone.json`.

    Args:
        model: model with the adapter.
        backbone: backbone of the model.
        directory: adapter directory to write.
        weights: full trained weights by name, if the model's own are sharded over processes.
        head: summary of the head's training rows, if the model has a head.

    Raises:
        AdapterError: if PEFT wrote no configuration.
    """
    with whole_directory(directory) as temporary:
        model.save_pretrained(
            str(temporary),
            safe_serialization=True,
            save_embedding_layers=False,
            state_dict=weights,
        )
        # PEFT writes a model card without content; the release writes its own.
        (temporary / "README.md").unlink(missing_ok=True)
        if head is not None:
            _save_head(backbone.model.config, head, temporary)
        write_json(
            temporary / BACKBONE,
            {
                **backbone.spec.model_dump(mode="json"),
                "fingerprint": asdict(backbone.fingerprint)
                | {"digest": backbone.fingerprint.digest},
                "quantized_modules": list(backbone.quantized_modules),
            },
        )
        if not (temporary / ADAPTER_CONFIG).is_file():
            raise AdapterError(
                f"{directory}: PEFT wrote no {ADAPTER_CONFIG}. Fix: install the pinned version of "
                "PEFT (constraints.txt)"
            )


def _save_head(config: Any, saved: SavedHead, directory: Path) -> None:
    """Write a head's files beside an adapter.

    Args:
        config: transformers' configuration of the model, which other programs need to load the
            head.
        saved: statistics of the training rows, for the baselines of an evaluation.
        directory: directory of the adapter.
    """
    # The backbone's path and quantization are specific to this machine.
    local = ("quantization_config", "_name_or_path")
    values = {name: value for name, value in config.to_dict().items() if name not in local}
    write_json(directory / CONFIG, values)
    write_json(directory / saved.FILE, saved.to_json())


def read_saved_head(adapter: Path) -> SavedHead | None:
    """Read the description of an adapter's head; `None` for a language model's adapter.

    Raises:
        AdapterError: if the adapter has a head without a valid description of its outputs.
    """
    config = read_json(adapter / ADAPTER_CONFIG, AdapterError)
    task = config.get("task_type")
    # PEFT has no task type of masked language models, nor of other programs' own adapters.
    is_masked = task is None and (adapter / SavedMasked.FILE).is_file()
    if not is_masked and task not in (*HEAD_TASK_TYPES.values(), FEATURE_EXTRACTION):
        return None
    for kind in KINDS:
        path = adapter / kind.FILE
        if path.is_file():
            return kind.from_json(read_json(path, AdapterError), path)
    names = sorted(kind.FILE for kind in KINDS)
    raise AdapterError(
        f"{adapter}: an adapter with a head ({task}) without {', '.join(names[:-1])} or "
        f"{names[-1]}, which name its outputs. Fix: restore the file, or evaluate an adapter "
        "trained by lora-kit"
    )
