"""Outcomes of the base, kept between evaluations: it does not change, adapters do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from lora_kit.evaluation.engine.scoring import BatchLayout
from lora_kit.evaluation.item import Outcome, Request
from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.files import write_json
from lora_kit.runtime.hashes import json_sha256

# Raise it when the same request can have another outcome than before.
ENGINE = "2"


def setting(device: torch.device) -> str:
    """What else than model and request moves the last digits of an outcome."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return "/".join(
        [
            ENGINE,
            torch.__version__,
            transformers.__version__,
            name,
            torch.backends.cpu.get_cpu_capability(),
            str(torch.get_num_threads()),
        ]
    )


@dataclass(frozen=True)
class OutcomeCache:
    """A directory of outcomes, a file a batch.

    By the content of the whole batch, not of the item alone: in another batch the last digits
    differ, and a difference between arms would no longer be the adapter's alone.

    Attributes:
        root: where they lie.
        model: digest of the weights.
        setting: see `setting`.
        fresh: whether what is kept is passed over, and written anew.
    """

    root: Path
    model: str
    setting: str
    no_cache: bool = False

    @classmethod
    def of(cls, model: str, device: torch.device, no_cache: bool) -> OutcomeCache:
        """In the user's cache."""
        return cls(cache_directory() / "outcomes", model, setting(device), no_cache)

    def path(self, requests: Sequence[Request], prefix: Sequence[int], way: BatchLayout) -> Path:
        """Where the outcomes of a batch are."""
        described = [self.setting, list(prefix), asdict(way), *map(_described, requests)]
        digest = json_sha256(described)
        return self.root / self.model[:16] / digest[:2] / f"{digest}.json"

    def read(self, path: Path) -> list[Outcome] | None:
        """The outcomes; `None` if there are none that can be read."""
        if self.no_cache:
            return None
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))["outcomes"]
            return [
                Outcome(tuple(r["log_likelihoods"]), tuple(r["greedy"]), r["text"], r["tokens"])
                for r in rows
            ]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path, outcomes: Sequence[Outcome]) -> None:
        """Keep the outcomes of a batch where that is possible.

        Not where one is no number, which JSON lacks, nor where the cache cannot be written to: an
        evaluation does not need it.
        """
        with suppress(ValueError, OSError):
            write_json(path, {"outcomes": [asdict(outcome) for outcome in outcomes]})


def _described(request: Request) -> list[object]:
    return [type(request).__name__, asdict(request)]
