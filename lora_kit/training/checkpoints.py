"""Checkpoints: all that a training needs to go on as if nothing had happened.

    checkpoints/step-000100/
        adapter.safetensors    the trained weights
        best.safetensors       those of the lowest validation loss, where they are kept
        within.safetensors     those of the last look that was within the retention budget
        optimizer.safetensors  moments and step counts
        random-0.safetensors   random state of each process
        state.json             schedule, optimizer groups, scaler, tokens, validation, budget
        trainer_state.json     of transformers: step and epoch
        files.json             sha256 of each file

Weights are data: nothing here is a pickle. A checkpoint is whole or absent, since it is written
under a temporary name; `files.json` tells one that was damaged afterwards.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import TrainerState

from lora_kit.runtime.console import say
from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.files import read_json, whole_directory, write_json
from lora_kit.runtime.hashes import file_sha256
from lora_kit.training.retention.early_stopping import RetentionEarlyStopping
from lora_kit.training.sharded import divided_as, whole
from lora_kit.training.trained_weights import Tensors, restore_weights, trained_weights
from lora_kit.training.validation import Validation

WEIGHTS = "adapter.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
WITHIN = "within.safetensors"
FILES = "files.json"


class Checkpointed(Protocol):
    """What a checkpoint holds of a trainer.

    Attributes:
        like_length: how many examples of about one length are adjacent in the order of training.
        tokens: tokens seen so far by all processes, without padding.
        validation: the validation losses so far.
        budget: the early stopping of the retention texts.
    """

    model: Any
    args: Any
    state: TrainerState
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any
    like_length: int
    tokens: int
    validation: Validation | None
    early_stopping: RetentionEarlyStopping | None

    @property
    def ended(self) -> bool:
        """Return whether the step that is done is the last one."""

    def is_world_process_zero(self) -> bool:
        """Return whether this process writes the checkpoint."""


def save(trainer: Checkpointed, keep: int) -> None:
    """Write the checkpoint of the step that is done, and delete all but the `keep` latest whole.

    Raises:
        TrainingError: if it cannot be written; those before it are as they were.
    """
    states = gather_object([_random_state()])
    # Where they are divided over the processes, it takes all of these to put them together.
    weights = trained_weights(trainer.model)
    optimizer = _split(trainer.optimizer.state_dict()["state"])
    if trainer.is_world_process_zero():
        folder = Path(trainer.args.output_dir)
        path = folder / f"step-{trainer.state.global_step:06d}"
        try:
            with whole_directory(path) as temporary:
                _write(trainer, states, weights, optimizer, temporary)
        except (OSError, SafetensorError) as error:
            last = newest(folder)
            raise TrainingError(
                f"{path}: the checkpoint cannot be written: {error}. "
                + (f"{last} is whole: make room, then go on with --resume" if last else "Make room")
            ) from error
        _prune(folder, keep, written=path)
    trainer.accelerator.wait_for_everyone()


def _prune(folder: Path, keep: int, written: Path) -> None:
    """Delete all checkpoints but the one that was just written and the latest whole ones.

    One that was damaged since does not count: it would push out what a training can go on from.
    """
    others = [path for path in _steps(folder) if path != written]
    if len(others) < keep:
        return
    kept = 1
    for path in others:
        problem = _damage(path) if kept < keep else None
        if problem is None and kept < keep:
            kept += 1
            continue
        if problem:
            say(f"{path}: damaged since it was written, and removed: {problem}")
        shutil.rmtree(path, ignore_errors=True)


def _write(
    trainer: Checkpointed,
    random_states: list[Tensors],
    weights: Tensors,
    optimizer: tuple[Tensors, dict[str, Any]],
    folder: Path,
) -> None:
    tensors, values = optimizer
    scaler = getattr(trainer.accelerator, "scaler", None)
    save_file(weights, folder / WEIGHTS)
    save_file(tensors, folder / OPTIMIZER)
    for rank, state in enumerate(random_states):
        save_file(state, folder / f"random-{rank}.safetensors")
    if trainer.validation and trainer.validation.best_weights:
        save_file(trainer.validation.best_weights, folder / "best.safetensors")
    if trainer.early_stopping and trainer.early_stopping.kept:
        save_file(trainer.early_stopping.kept, folder / WITHIN)
    trainer.state.save_to_json(str(folder / "trainer_state.json"))
    write_json(
        folder / STATE,
        {
            "ended": trainer.ended,
            "like_length": trainer.like_length,
            "tokens": trainer.tokens,
            "optimizer": {
                "values": values,
                "groups": trainer.optimizer.state_dict()["param_groups"],
            },
            "schedule": trainer.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "validation": trainer.validation.state() if trainer.validation else None,
            "budget": trainer.early_stopping.state() if trainer.early_stopping else None,
        },
    )
    names = sorted(path.name for path in folder.iterdir())
    write_json(folder / FILES, {name: file_sha256(folder / name) for name in names})


def _split(state: dict[int, dict[str, Any]]) -> tuple[Tensors, dict[str, Any]]:
    """The optimizer's state as tensors for safetensors and values for JSON, by `index.name`."""
    flat = {f"{n}.{name}": value for n, part in state.items() for name, value in part.items()}
    tensors = {
        name: whole(value) for name, value in flat.items() if isinstance(value, torch.Tensor)
    }
    return tensors, {name: value for name, value in flat.items() if name not in tensors}


def _random_state() -> Tensors:
    """All random state of this process."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    described = json.dumps([version, gauss, kind, position, has_gauss, cached])
    state = {
        "torch": torch.random.get_rng_state(),
        "python": torch.tensor(numbers, dtype=torch.int64),
        "numpy": torch.tensor(np.asarray(keys, dtype=np.int64)),
        "rest": torch.frombuffer(bytearray(described.encode()), dtype=torch.uint8),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def load_random_state(trainer: Checkpointed, folder: Path) -> None:
    """Put this process's random state back, if there was such a process."""
    path = folder / f"random-{trainer.args.process_index}.safetensors"
    if not path.is_file():
        return  # of a process that there was not
    state = load_file(path)
    version, gauss, kind, position, has_gauss, cached = json.loads(bytes(state["rest"].tolist()))
    random.setstate((version, tuple(state["python"].tolist()), gauss))
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))
    torch.random.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Put the trained weights back."""
    restore_weights(model, load_file(folder / WEIGHTS))


def load_optimizer(trainer: Checkpointed, folder: Path) -> None:
    """Put the optimizer, the schedule, the scaler and the counts back."""
    saved = read_json(folder / STATE, TrainingError)
    if saved.get("like_length") != trainer.like_length:
        raise TrainingError(
            f"{folder}: in its order {saved.get('like_length')} examples of about one length stand "
            f"together, here {trainer.like_length}, which puts other examples into a step. Set "
            "training.micro_batch_size as it was, or begin anew without --resume"
        )
    state: dict[int, dict[str, Any]] = {}
    trained = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    flat = {**load_file(folder / OPTIMIZER), **saved["optimizer"]["values"]}
    for key, value in flat.items():
        index, _, name = key.partition(".")
        parameter = trained[int(index)]
        state.setdefault(int(index), {})[name] = divided_as(parameter, value)
    groups = saved["optimizer"]["groups"]
    for group in groups:
        group["betas"] = tuple(group["betas"])
    trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
    trainer.lr_scheduler.load_state_dict(saved["schedule"])
    scaler = getattr(trainer.accelerator, "scaler", None)
    if scaler is not None and saved["scaler"]:
        scaler.load_state_dict(saved["scaler"])
    _load_counts(trainer, saved, folder)


def _load_counts(trainer: Checkpointed, saved: dict[str, Any], folder: Path) -> None:
    trainer.tokens = int(saved["tokens"])
    if trainer.validation and saved["validation"]:
        best = folder / "best.safetensors"
        trainer.validation.restore(saved["validation"], load_file(best) if best.is_file() else {})
    if trainer.early_stopping and saved.get("budget"):
        trainer.early_stopping.restore(saved["budget"], load_file(folder / WITHIN))


def load_if_ended(trainer: Checkpointed, folder: Path) -> bool:
    """Put everything back if the training had ended with this checkpoint; else do nothing.

    transformers would go on from there: its loop knows nothing of an end that it did not reach.
    """
    saved = read_json(folder / STATE, TrainingError)
    if not saved["ended"]:
        return False
    load_weights(trainer.model, folder)
    trainer.state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
    _load_counts(trainer, saved, folder)
    return True


def newest(folder: Path) -> Path | None:
    """The latest checkpoint that is whole; damaged ones are told and passed over."""
    for path in _steps(folder):
        problem = _damage(path)
        if problem is None:
            return path
        say(f"{path}: passed over: {problem}")
    return None


def _steps(folder: Path) -> list[Path]:
    """The checkpoints, the latest first."""
    numbered = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return sorted(numbered, key=lambda path: int(path.name[5:]), reverse=True)


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files."""
    try:
        recorded = json.loads((path / FILES).read_text())
        changed = [n for n, digest in recorded.items() if file_sha256(path / n) != digest]
    except (OSError, ValueError, AttributeError) as error:
        return f"{error}"
    return f"{', '.join(changed)} is not what was written" if changed else None
