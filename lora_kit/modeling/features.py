"""What a frozen backbone makes of each text, computed once and kept: all that a head is trained on.

Kept in the cache folder by the hash of backbone, texts and machine, so that a second training of
another head, or with another rate, begins at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lora_kit.backbone.heads import pad_right
from lora_kit.backbone.load import Backbone
from lora_kit.data.prepared import PreparedData
from lora_kit.data.tokenization import Example
from lora_kit.modeling.likelihood import to_device
from lora_kit.modeling.modes import eval_mode
from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.console import meter, say
from lora_kit.runtime.errors import AdapterError
from lora_kit.runtime.files import whole_file
from lora_kit.runtime.hashes import json_sha256

if TYPE_CHECKING:
    from peft import PeftModel

# Raise it when the same text can have other features than before.
VERSION = 1
ROWS = 32
# Two float32 computations of one head on one input differ by less.
SAME = 1e-4

Pick = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Features:
    """Inputs of a head, one for each text.

    Attributes:
        values: (texts, hidden) float32; (texts, 1, hidden) for a head that takes whole rows.
        head: the module that is trained, which turns them into logits.
    """

    values: torch.Tensor
    head: torch.nn.Module

    def batch(self, rows: Sequence[int], examples: Sequence[Example]) -> dict[str, Any]:
        """Features and `targets` (batch,) of some examples.

        Args:
            rows: which they are among all.
            examples: the same ones.
        """
        chosen = self.values[torch.tensor(list(rows))]
        targets = torch.tensor([example.labels[-1] for example in examples])
        return {"features": chosen, "targets": targets.to(chosen.device), "head": self.head}


def frozen_features(backbone: Backbone, model: PeftModel, data: PreparedData) -> Features:
    """The features of all examples, in their order, from the cache or computed.

    Args:
        backbone: of the model.
        model: the classifier, of which the head alone is trained.
        data: the texts.

    Raises:
        AdapterError: if the input of this architecture's head cannot be told apart.
    """
    assert backbone.head is not None
    if backbone.head.beside:
        raise AdapterError(
            "adapter.method: head: of this backbone, more than the head begins at random "
            f"({', '.join(backbone.head.beside)}), so that there are no frozen features before it; "
            "use lora, last-1 or full"
        )
    head = backbone.model.get_submodule(backbone.head.module)
    values = cached(backbone, data, "", lambda: _computed(backbone, model, head, data))
    return Features(values.to(backbone.model.device), head)


def cached(
    backbone: Backbone, data: PreparedData, what: str, compute: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """Features of all examples, in their order, from the cache or computed and put there.

    Args:
        backbone: that they are of, frozen.
        data: the texts.
        what: tells them from other features of the same texts; empty for the head's own.
        compute: gives them, (texts, ...) float32.
    """
    path = cache_directory() / "features" / f"{_key(backbone, data, what)}.safetensors"
    values = _kept(path)
    if values is None:
        values = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            save_file({"features": values}, temporary)
    return values


def _kept(path: Path) -> torch.Tensor | None:
    if not path.is_file():
        return None
    try:
        return load_file(path)["features"]
    except (SafetensorError, KeyError) as error:
        say(f"{path}: cannot be read and is computed anew: {error}")
        return None


def _key(backbone: Backbone, data: PreparedData, what: str) -> str:
    """The sha256 of all that decides the features."""
    device = backbone.model.device
    parts = [
        VERSION,
        backbone.fingerprint.digest,
        backbone.spec.attention,
        data.digest,
        [version(name) for name in ("torch", "transformers", "bitsandbytes")],
        torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        torch.backends.cpu.get_cpu_capability(),
        *([what] if what else []),
    ]
    return json_sha256(parts)


def _computed(
    backbone: Backbone, model: PeftModel, head: torch.nn.Module, data: PreparedData
) -> torch.Tensor:
    order = np.argsort(-data.lengths, kind="stable").tolist()
    examples, pad = data.examples, backbone.tokenizer.pad_token_id
    found: dict[int, torch.Tensor] = {}
    pick: Pick | None = None
    with (
        eval_mode(model),
        torch.no_grad(),
        _inputs_of(head) as seen,
        meter("features", len(order)) as progress,
    ):
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            batch = pad_right([examples[row].input_ids for row in rows], pad)
            batch = to_device(batch, backbone.model.device)
            logits = model(**batch).logits.float()
            hidden, last = seen.pop().float(), _last(batch["input_ids"], pad)
            seen.clear()
            pick = pick or _pick(backbone, head, hidden, last, logits)
            seen.clear()
            found.update(zip(rows, pick(hidden, last).cpu(), strict=True))
            progress.advance(len(rows))
    return torch.stack([found[row] for row in range(len(order))])


def _last(input_ids: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """(batch,): where a decoder's head is read: the last token that is not the padding one.

    A turn may end with that token as well; then it is the one before.
    """
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    return (places * (input_ids != pad_token_id)).argmax(dim=1)


@contextmanager
def _inputs_of(head: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    seen: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _pick(
    backbone: Backbone,
    head: torch.nn.Module,
    hidden: torch.Tensor,
    last: torch.Tensor,
    logits: torch.Tensor,
) -> Pick:
    """What of the head's input its logits are made of, found out by trying.

    An encoder's is pooled already (batch, hidden), or its first place is read; a decoder's head is
    applied at every place, of which the last is taken.
    """

    def pooled(hidden: torch.Tensor, _last: torch.Tensor) -> torch.Tensor:
        return hidden

    def at_the_last(hidden: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        return hidden[torch.arange(len(hidden)), last]

    def at_the_first(hidden: torch.Tensor, _last: torch.Tensor) -> torch.Tensor:
        return hidden[:, :1]

    for pick in [pooled] if hidden.dim() == 2 else [at_the_last, at_the_first]:
        try:
            again = head(pick(hidden, last))
        except (IndexError, RuntimeError):
            continue  # a head that takes rows was given places
        if again.shape == logits.shape and torch.allclose(again.float(), logits, atol=SAME):
            return pick
    raise AdapterError(
        f"adapter.method: head: what the head of {type(backbone.model).__name__} reads of a text "
        "cannot be told apart from the rest; use lora"
    )
