"""Cache of the base's outcomes between evaluations: adapters change, the base does not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from lora_kit.evaluation.engine.scoring import BatchLayout
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.requests import Request
from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.files import write_json
from lora_kit.runtime.hashes import json_sha256

# Version of the cached outcomes; raise it when a change can alter the outcome of a request.
ENGINE = "5"


def numeric_environment(device: torch.device) -> str:
    """Return the versions and the device, which affect the last digits of an outcome."""
    name = device.type
    if name == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, finer merged models in TF32"
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
    """Directory of cached outcomes, one file per batch.

    Files are keyed by the content of a whole batch, not of single items: outcomes of an item differ
    in their last digits between batches, and that difference would be attributed to the adapter.

    Attributes:
        root: directory of the cache.
        model: digest of the weights.
        environment: value of `numeric_environment`.
        no_cache: if true, ignore cached outcomes and overwrite them.
    """

    root: Path
    model: str
    environment: str
    no_cache: bool = False

    @classmethod
    def of(cls, model: str, device: torch.device, no_cache: bool) -> OutcomeCache:
        """Return the cache of a model in the user's cache directory."""
        return cls(cache_directory() / "outcomes", model, numeric_environment(device), no_cache)

    def path(self, requests: Sequence[Request], prefix: Sequence[int], layout: BatchLayout) -> Path:
        """Return the path of a batch's outcomes."""
        described = [
            self.environment,
            list(prefix),
            asdict(layout),
            *([type(request).__name__, asdict(request)] for request in requests),
        ]
        digest = json_sha256(described)
        return self.root / self.model[:16] / digest[:2] / f"{digest}.json"

    def read(self, path: Path) -> list[Outcome] | None:
        """Return cached outcomes; `None` if the file is absent, unreadable or ignored."""
        if self.no_cache:
            return None
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))["outcomes"]
            return [
                Outcome(
                    tuple(r["log_likelihoods"]),
                    tuple(r["greedy"]),
                    r["text"],
                    r["tokens"],
                    samples=tuple(r["samples"]),
                    cut_off=tuple(r["cut_off"]),
                )
                for r in rows
            ]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path, outcomes: Sequence[Outcome]) -> None:
        """Write the outcomes of a batch.

        Outcomes that are not finite, which JSON cannot represent, and errors of the file system are
        ignored: an evaluation does not depend on the cache.
        """
        with suppress(ValueError, OSError):
            write_json(path, {"outcomes": [asdict(outcome) for outcome in outcomes]})
