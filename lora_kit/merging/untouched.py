"""The tensors that an adapter leaves alone: are they in the merged files what they were?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lora_kit.backbone.fingerprint import weight_files
from lora_kit.merging.tensors import by_key


def touched(base: Path, merged: Path, keys: Sequence[str]) -> list[str]:
    """Those of some tensors that are not the backbone's, rounded to the dtype they are stored in.

    Their use depends on the text, as that of an embedding's rows does: no comparison of answers
    would find all of them.

    Args:
        base: directory of the backbone.
        merged: directory of the merged model.
        keys: of the tensors that the merge was to leave alone.
    """
    before, after = by_key(weight_files(base)), by_key(weight_files(merged))
    return [
        key
        for key in keys
        if key not in after
        or not torch.equal(before[key].read().to(after[key].dtype), after[key].read())
    ]
