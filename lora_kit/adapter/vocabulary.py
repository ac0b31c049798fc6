"""Vocabulary of a saved adapter: embeddings that it holds with more or fewer rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lora_kit.adapter.saved import ADAPTER_WEIGHTS
from lora_kit.adapter.saved_configuration import PREFIX
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import LoraKitError

# Parts of a name that PEFT inserts before the parameter's own.
INSERTED = (".base_layer", ".token_adapter", ".modules_to_save", ".original_module")
_RESIZED = "lora_kit_resized_rows"


def bare_key(key: str) -> str:
    """Return the name in the backbone of a tensor that the adapter holds in full."""
    for part in INSERTED:
        key = key.replace(f"{part}.", ".")
    return key.removeprefix(PREFIX)


def saved_vocabulary_rows(model: Any, directory: Path, error: type[LoraKitError]) -> int:
    """Return the rows of the embeddings that an adapter holds; 0 if it holds none.

    Args:
        model: backbone without an adapter; its parameters may have no values.
        directory: directory of the adapter, with sound weights.
        error: class of the error.

    Raises:
        error: if embedding and output head have different numbers of rows, or one of them is
            missing although the other one was resized.
    """
    embeddings = _embeddings(model)
    path = directory / ADAPTER_WEIGHTS
    with safe_open(path, framework="pt") as file:
        saved = [(bare_key(key), file.get_slice(key).get_shape()[0]) for key in file.keys()]  # noqa: SIM118
    rows = {one.name: {int(n) for key, n in saved if key in one.names} for one in embeddings}
    if all(rows[one.name] <= {one.rows} for one in embeddings):
        return 0
    if len(set().union(*rows.values())) > 1 or not all(rows.values()):
        found = ", ".join(
            f"{name} {' and '.join(map(str, sorted(counts))) or 'missing'}"
            for name, counts in rows.items()
        )
        raise error(
            f"{path}: the vocabulary was resized, and its rows are not known for all embeddings "
            f"(got {found}; the backbone has {max(one.rows for one in embeddings)}). Fix: save the "
            "adapter with save_embedding_layers=True; where one embedding is in target_modules, "
            "PEFT saves the other one only if it is in target_modules or modules_to_save"
        )
    return max(set().union(*rows.values()))


@dataclass(frozen=True)
class _Embedding:
    """Input embedding or output head.

    Attributes:
        names: names of the weight, several if it is tied.
        rows: number of rows in the backbone.
    """

    names: tuple[str, ...]
    rows: int

    @property
    def name(self) -> str:
        """First name of the weight."""
        return self.names[0]


def _embeddings(model: Any) -> list[_Embedding]:
    """Return the input embedding, and the output head unless it is tied."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = {id(module.weight): module.weight for module in modules if module is not None}
    named = list(model.named_parameters(remove_duplicate=False))
    return [
        _Embedding(tuple(name for name, one in named if one is weight), weight.shape[0])
        for weight in weights.values()
    ]


@torch.no_grad()
def resize_vocabulary(model: Any, rows: int, names: Iterable[str]) -> None:
    """Resize the embeddings of a backbone to those of an adapter, in place.

    Rows that the backbone lacks become the mean of its rows, so that the backbone alone hardly
    predicts the tokens which only the adapter knows.

    Args:
        model: backbone without an adapter, frozen.
        rows: number of rows.
        names: names of backbone and adapter in the message.
    """
    before = int(model.get_input_embeddings().weight.shape[0])
    reference, adapter = names
    say(
        f"{adapter}: holds {rows} rows of the vocabulary; {reference} is resized from {before}"
        + (", the new rows to the mean of the others" if rows > before else "")
    )
    model.resize_token_embeddings(rows, mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None and rows > before:
            known = module.weight[:before].float().mean(dim=0)
            module.weight[before:] = known.to(module.weight.dtype)
    model.requires_grad_(False)
    setattr(model, _RESIZED, rows)


def resized_rows(model: Any) -> int | None:
    """Return the rows that `resize_vocabulary` gave a backbone; `None` if it has its own."""
    rows: int | None = getattr(model, _RESIZED, None)
    return rows
