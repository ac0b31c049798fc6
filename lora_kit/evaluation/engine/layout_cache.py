"""Cache of the batch layouts that were found right for a model, between evaluations.

A search scores some requests one by one, 1.3 s for each kind on a 135M model.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from lora_kit.evaluation.engine.layout_search import LAYOUTS
from lora_kit.evaluation.engine.outcome_cache import numeric_environment
from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer
from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.errors import LoraKitError
from lora_kit.runtime.files import read_json, write_json
from lora_kit.runtime.hashes import json_sha256


class RequestKind(NamedTuple):
    """Properties of requests that a layout is right or wrong for.

    Attributes:
        has_choices: false for requests that are read as one text, generations among them.
        has_prefix: true if the requests begin with the same tokens.
        magnitude: half the number of bits of the longest request's tokens. Layers may read long
            texts otherwise (scaled RoPE, windows), so four times the length is another kind.
    """

    has_choices: bool
    has_prefix: bool
    magnitude: int


def read_layout(scorer: Scorer, model: str, kind: RequestKind) -> BatchLayout | None:
    """Return the layout that was found before; `None` if there is none that can be read.

    Args:
        scorer: model with the arm active.
        model: digest of the weights.
        kind: kind of the requests.
    """
    with suppress(LoraKitError):
        stored = read_json(_path(scorer, model, kind), LoraKitError)
        return next((layout for layout in LAYOUTS if asdict(layout) == stored), None)
    return None


def write_layout(scorer: Scorer, model: str, kind: RequestKind, layout: BatchLayout) -> None:
    """Keep a layout, but for the slowest one: it may come with a warning, which is to be repeated.

    Errors of the file system are ignored: an evaluation does not depend on the cache.
    """
    if layout != LAYOUTS[-1]:
        with suppress(OSError):
            write_json(_path(scorer, model, kind), asdict(layout))


def _path(scorer: Scorer, model: str, kind: RequestKind) -> Path:
    attention = str(scorer.model.config._attn_implementation)
    described = [model, list(kind), attention, numeric_environment(scorer.device)]
    return cache_directory() / "layouts" / f"{json_sha256(described)}.json"
