"""Checks of a model's folder before a library opens its files, which anybody may have written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE

from lora_kit.runtime.errors import BackboneError, LoraKitError
from lora_kit.runtime.files import read_json

# JSON files that transformers reads; those with wrong contents it partly ignores.
OBJECTS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    SAFETENSORS_INDEX_FILE,
)
# Endings of the files that a model can consist of.
ENDINGS = frozenset((".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken"))
ADAPTER_CONFIG = "adapter_config.json"
MOST_TOKENS = 2**31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_token_ids(value: Any) -> bool:
    ids = value if isinstance(value, list) else [value]
    # Some configurations say -1 for none.
    return all(type(one) is int and -1 <= one < MOST_TOKENS for one in ids)


def _is_dtype(value: Any) -> bool:
    return isinstance(value, str) and isinstance(
        getattr(torch, value.removeprefix("torch."), None), torch.dtype
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_template(value: Any) -> bool:
    if isinstance(value, str):
        return True
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        return False
    names = [one.get("name") for one in value]
    parts = [*names, *(one.get("template") for one in value)]
    return all(isinstance(part, str) for part in parts) and len(set(names)) == len(names)


# Fields whose values transformers takes as they are: file, names, test and description.
CHECKED_FIELDS: tuple[tuple[str, re.Pattern[str], Callable[[Any], bool], str], ...] = (
    ("config.json", re.compile("(torch_)?dtype"), _is_dtype, "the name of a dtype of torch"),
    ("config.json", re.compile("return_dict"), lambda value: value is True, "true"),
    ("config.json", re.compile("architectures"), _is_texts, "a list of class names"),
    (
        "generation_config.json",
        re.compile(r"\w+_token_id"),
        _is_token_ids,
        "a token id or a list of token ids",
    ),
    (
        "generation_config.json",
        re.compile(
            "temperature|top_[kp]|min_p|(max|min)_(length|new_tokens)|num_beams|((encoder_)?repetition|length)_penalty"
        ),
        _is_number,
        "a number",
    ),
    ("tokenizer_config.json", re.compile("model_max_length"), _is_number, "a number"),
    (
        "tokenizer_config.json",
        re.compile("chat_template"),
        _is_template,
        "a text, or a list of objects with a `name` of their own and a `template`",
    ),
)


def require_sound_folder(directory: Path, error: type[LoraKitError] = BackboneError) -> None:
    """Refuse a folder whose files lie elsewhere, or of which transformers would read others.

    Args:
        directory: model directory.
        error: class of the errors.

    Raises:
        error: naming the file.
    """
    files = [file for file in sorted(directory.iterdir()) if file.suffix in ENDINGS]
    for file in (*files, *sorted(directory.glob("additional_chat_templates/*"))):
        require_inside(file, directory, error)
        # A pipe would never end, and transformers passes over a directory.
        if not file.is_file():
            raise error(f"{file}: no file (got a directory or a device). Fix: remove it")
    if (directory / ADAPTER_CONFIG).exists():
        raise error(
            f"{directory / ADAPTER_CONFIG}: an adapter in the folder of a model, which "
            "transformers would add to the model. Fix: move the adapter's files to another folder"
        )
    for name in OBJECTS:
        if (directory / name).exists():
            values = read_json(directory / name, error)
            _require_types(values, directory / name, error)
            if name == "config.json" and values.get("transformers_weights") is not None:
                raise error(
                    f"{directory / name}: transformers_weights: other names of weights are not "
                    f"supported (got {values['transformers_weights']!r:.80}). Fix: rename the "
                    "weights to model.safetensors and remove the field"
                )


def _require_types(values: Mapping[str, Any], path: Path, error: type[LoraKitError]) -> None:
    for name, value in values.items():
        for file, names, is_valid, expected in CHECKED_FIELDS:
            is_checked = file == path.name and names.fullmatch(name) and value is not None
            if is_checked and not is_valid(value):
                raise error(
                    f"{path}: {name} is not {expected} (got {value!r:.80}). Fix: restore the file "
                    "from the model's source"
                )


def require_inside(
    path: Path,
    directory: Path,
    error: type[LoraKitError] = BackboneError,
    source: Path | None = None,
) -> None:
    """Refuse a file that is not below the model's folder, links followed.

    In the hub's cache, a snapshot's files are links to the blobs of their repository.

    Args:
        path: file of the model; it need not exist.
        directory: model directory.
        error: class of the errors.
        source: file that names `path`, for the message.

    Raises:
        error: naming the file and its place.
    """
    try:
        path.is_file()  # fails for names that no file can have
        place, folder = path.resolve(), directory.resolve()
    except (OSError, RuntimeError, ValueError) as problem:
        raise error(
            f"{source or path}: a link or a name that leads nowhere (got {str(problem)[:200]}). "
            "Fix: restore the file from the model's source"
        ) from problem
    own = [folder, folder.parents[1] / "blobs"] if folder.parent.name == "snapshots" else [folder]
    if not any(place.is_relative_to(one) for one in own):
        wrong = (
            f"names a file outside of the model's folder (got {str(path)[:200]})"
            if source
            else f"a link out of the model's folder (got {place})"
        )
        raise error(f"{source or path}: {wrong}. Fix: copy the file into the folder")
