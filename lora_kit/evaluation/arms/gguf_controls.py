"""Controls of GGUF files: the base, exported in the same file type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_kit.evaluation.arms.files import FileArm
from lora_kit.merging.exporting.gguf_writers import open_reader
from lora_kit.runtime.errors import RecipeError

TYPE_KEY = "general.file_type"


def matched_controls(
    files: Sequence[FileArm], controls: Sequence[FileArm]
) -> dict[FileArm, FileArm]:
    """Return the file of the base that has the file type of each file, for those that have one.

    Args:
        files: files of the adapter.
        controls: files of the base.

    Raises:
        RecipeError: if a control has the type of no file, or of another control, or the weights of
            a file.
        MergeError: if a file cannot be read as GGUF.
    """
    if not controls:
        return {}
    readers = {file: open_reader(file.path) for file in (*files, *controls)}
    types = {file: _file_type(file, reader) for file, reader in readers.items()}
    matched: dict[FileArm, FileArm] = {}
    for control in controls:
        own = [file for file in files if types[file] == types[control]]
        if not own:
            named = [f"{file.name} in {types[file]}" for file in files]
            raise RecipeError(
                f"arm {control.name}: no file among the arms is in {types[control]} (got "
                f"{', '.join(named) or 'no gguf=FILE'}). Fix: export the base in the type of a "
                "file, or add --arm gguf=FILE"
            )
        if own[0] in matched:
            raise RecipeError(
                f"arm {control.name}: two files of the base are in {types[control]} (got "
                f"{matched[own[0]].name} as well). Fix: remove one"
            )
        for file in own:
            if _has_same_weights(readers[file], readers[control]):
                raise RecipeError(
                    f"arm {control.name}: has the weights of {file.name} (got no tensor that "
                    "differs). Fix: write it with `lora-kit export BASE_DIR --to gguf --type "
                    f"{types[control]}`; an adapter that was not trained changes no weights"
                )
            matched[file] = control
    return matched


def _file_type(file: FileArm, reader: Any) -> str:
    """Return the file type as `lora-kit export --type` names it.

    Raises:
        RecipeError: if the file does not say it.
    """
    from gguf import LlamaFileType

    field = reader.get_field(TYPE_KEY)
    if field is None:
        raise RecipeError(
            f"arm {file.name}: does not say its file type, which controls are found by (got no "
            f"{TYPE_KEY}). Fix: export it again, or remove the arm base-gguf=FILE"
        )
    number = int(field.contents())
    names = [str(one.name) for one in LlamaFileType if one.value == number]
    name = names[0] if names else f"type {number}"
    return name.removeprefix("MOSTLY_").removeprefix("ALL_").lower()


def _has_same_weights(one: Any, other: Any) -> bool:
    """Return true if two GGUF files hold the same tensors, to the byte."""
    tensors = {tensor.name: tensor.data for tensor in one.tensors}
    others = {tensor.name: tensor.data for tensor in other.tensors}
    return tensors.keys() == others.keys() and all(
        np.array_equal(data, others[name]) for name, data in tensors.items()
    )
