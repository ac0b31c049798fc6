"""Checkpoints, from which a training resumes bit for bit.

    checkpoints/step-000100/
        adapter.safetensors    trained weights
        best.safetensors       weights of the lowest validation loss, if `keep_best` is set
        within.safetensors     last weights measured within the margin of early stopping
        optimizer.safetensors  moments and step counts
        random-0.safetensors   random state of each process
        state.json             schedule, optimizer groups, scaler, counts, validation losses
        trainer_state.json     step and epoch, written by transformers
        files.json             sha256 of each file

No file is a pickle. A checkpoint is written under a temporary name, so that it is complete or
absent; `files.json` reveals later damage.
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
from lora_kit.runtime.hashes import changed_files, file_sha256
from lora_kit.training.optimizer_state import full_optimizer_state, restore_optimizer_state
from lora_kit.training.retention.early_stopping import RetentionEarlyStopping
from lora_kit.training.trained_weights import Tensors, restore_weights, trained_weights
from lora_kit.training.validation import Validation

WEIGHTS = "adapter.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
WITHIN = "within.safetensors"
FILES = "files.json"


class Checkpointed(Protocol):
    """Protocol of a trainer whose state a checkpoint holds.

    Attributes:
        length_group_size: number of adjacent examples of similar length in training order.
        tokens: tokens seen so far by all processes, without padding.
        validation: validation losses and best weights.
        early_stopping: early stopping on retention texts.
    """

    model: Any
    args: Any
    state: TrainerState
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any
    length_group_size: int
    tokens: int
    validation: Validation | None
    early_stopping: RetentionEarlyStopping | None

    @property
    def ended(self) -> bool:
        """Return true after the last step."""

    def is_world_process_zero(self) -> bool:
        """Return true if this process writes the checkpoint."""


def save(trainer: Checkpointed, keep: int) -> None:
    """Write a checkpoint of the current step and delete all but the `keep` latest complete ones.

    A collective call.

    Raises:
        TrainingError: if the checkpoint cannot be written; earlier checkpoints are unchanged.
    """
    states = gather_object([_random_state()])
    # On all processes: sharded weights are gathered from all of them.
    weights = trained_weights(trainer.model)
    optimizer = full_optimizer_state(trainer.optimizer)
    if trainer.is_world_process_zero():
        folder = Path(trainer.args.output_dir)
        path = folder / f"step-{trainer.state.global_step:06d}"
        try:
            with whole_directory(path) as temporary:
                _write(trainer, states, weights, optimizer, temporary)
        except (OSError, SafetensorError) as error:
            last = newest(folder)
            resume = f", then rerun with --resume ({last} is complete)" if last else ""
            raise TrainingError(
                f"{path}: cannot write the checkpoint (got {error}). Fix: free disk space{resume}"
            ) from error
        _prune(folder, keep, written=path)
    trainer.accelerator.wait_for_everyone()


def _prune(folder: Path, keep: int, written: Path) -> None:
    """Delete all checkpoints but the one just written and the latest complete ones.

    A damaged checkpoint does not count towards `keep`; it would displace one that can be resumed.
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
            say(f"{path}: removed damaged checkpoint: {problem}")
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
            "length_group_size": trainer.length_group_size,
            "tokens": trainer.tokens,
            "optimizer": values,
            "schedule": trainer.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "validation": trainer.validation.state() if trainer.validation else None,
            "early_stopping": trainer.early_stopping.state() if trainer.early_stopping else None,
        },
    )
    names = sorted(path.name for path in folder.iterdir())
    write_json(folder / FILES, {name: file_sha256(folder / name) for name in names})


def _random_state() -> Tensors:
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    rest = json.dumps([version, gauss, kind, position, has_gauss, cached])
    state = {
        "torch": torch.random.get_rng_state(),
        "python": torch.tensor(numbers, dtype=torch.int64),
        "numpy": torch.tensor(np.asarray(keys, dtype=np.int64)),
        "rest": torch.frombuffer(bytearray(rest.encode()), dtype=torch.uint8),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def load_random_state(trainer: Checkpointed, folder: Path) -> None:
    """Restore this process's random state.

    Without effect if the checkpoint was written by fewer processes.
    """
    path = folder / f"random-{trainer.args.process_index}.safetensors"
    if not path.is_file():
        return
    state = load_file(path)
    version, gauss, kind, position, has_gauss, cached = json.loads(bytes(state["rest"].tolist()))
    random.setstate((version, tuple(state["python"].tolist()), gauss))
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))
    torch.random.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Restore the trained weights.

    Raises:
        TrainingError: if they are those of another adapter.
    """
    restore_weights(model, load_file(folder / WEIGHTS))


def load_optimizer(trainer: Checkpointed, folder: Path) -> None:
    """Restore the optimizer, the schedule, the scaler and the counts.

    Raises:
        TrainingError: if the examples would be in another order than in the checkpoint, or the
            parameters in other groups.
    """
    saved = read_json(folder / STATE, TrainingError)
    if saved.get("length_group_size") != trainer.length_group_size:
        raise TrainingError(
            f"{folder}: the order of examples changed (got groups of {trainer.length_group_size} "
            f"of similar length, {saved.get('length_group_size')} in the checkpoint). Fix: restore "
            "training.micro_batch_size, or drop --resume"
        )
    groups, ours = saved["optimizer"]["groups"], trainer.optimizer.param_groups
    if len(groups) != len(ours):
        raise TrainingError(
            f"{folder}: the optimizer's groups of parameters changed (got {len(ours)}, "
            f"{len(groups)} in the checkpoint). Fix: resume with the version of lora-kit that "
            "wrote it, or drop --resume"
        )
    restore_optimizer_state(trainer.optimizer, saved["optimizer"], load_file(folder / OPTIMIZER))
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
    if trainer.early_stopping and saved.get("early_stopping"):
        trainer.early_stopping.restore(saved["early_stopping"], load_file(folder / WITHIN))


def load_if_ended(trainer: Checkpointed, folder: Path) -> bool:
    """Restore everything and return true if the training had ended with this checkpoint.

    transformers would train on from such a checkpoint: it does not store that training ended.
    """
    saved = read_json(folder / STATE, TrainingError)
    if not saved["ended"]:
        return False
    load_weights(trainer.model, folder)
    trainer.state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
    _load_counts(trainer, saved, folder)
    return True


def newest(folder: Path) -> Path | None:
    """Return the latest complete checkpoint, reporting and skipping damaged ones."""
    for path in _steps(folder):
        problem = _damage(path)
        if problem is None:
            return path
        say(f"{path}: skipped damaged checkpoint: {problem}")
    return None


def _steps(folder: Path) -> list[Path]:
    """Return the checkpoints, latest first."""
    numbered = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return sorted(numbered, key=lambda path: int(path.name[5:]), reverse=True)


def _damage(path: Path) -> str | None:
    """Return a description of the damage; `None` if all files are as written."""
    try:
        recorded = json.loads((path / FILES).read_text())
        changed = changed_files(path, recorded)
    except (OSError, ValueError, AttributeError) as error:
        return f"{error}"
    return f"changed files: {', '.join(changed)}" if changed else None
