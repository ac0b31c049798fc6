"""Adapter to merged model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from lora_kit.adapters import adapter_sha256
from lora_kit.console import say
from lora_kit.data.dataset import training_rows, validation_rows
from lora_kit.data.tokenization import tokenize_rows
from lora_kit.evaluation.engine.run import stop_token_ids
from lora_kit.files import write_json
from lora_kit.gguf import file_sha256
from lora_kit.merging.stream import MergePlan, MergeResult, merge_stream
from lora_kit.merging.verify import Verification, verify_merged
from lora_kit.releasing.gate import MERGE_RECORD
from lora_kit.session import Session, open_run

COMPARED_ROWS = 24


@dataclass(frozen=True)
class Merged:
    """A merged model and how it compares with what was measured."""

    directory: Path
    result: MergeResult
    verification: Verification


def merge(target: Path | Session, output: Path | None = None) -> Merged:
    """Merge a run's adapter into its backbone and compare the result with what was measured.

    Args:
        target: a run directory or an open session.
        output: where the model goes; by default `merged/` in the run.

    Raises:
        LoraKitError: if the run cannot be merged.
    """
    session = target if isinstance(target, Session) else open_run(target)
    directory = output or session.run.merged
    backbone, recipe = session.backbone, session.recipe
    plan = MergePlan(
        base=backbone.files.directory,
        adapter=session.run.adapter,
        quantization=recipe.backbone.quantization,
        dtype=str(backbone.spec.dtype),
        quantized_modules=backbone.quantized_modules,
        into=recipe.merge.base,
        shard_bytes=int(recipe.merge.shard_size * 1e9),
        stop_token_ids=stop_token_ids(backbone),
    )
    # Before the merge: what cannot be compared is not worth writing.
    held_out = validation_rows(recipe.data, recipe.seed)
    rows = held_out or training_rows(recipe.data, recipe.seed)[0]
    several = tokenize_rows(
        rows[:COMPARED_ROWS].read(),
        backbone.tokenizer,
        recipe.data.max_length,
        recipe.data.labels,
    )
    examples = [example for of_row in several for example in of_row]
    if output is None:
        shutil.rmtree(directory, ignore_errors=True)
    result = merge_stream(plan, directory)
    verification = verify_merged(backbone, session.model, directory, examples)
    write_json(
        directory / MERGE_RECORD,
        {
            "backbone": backbone.fingerprint.digest,
            "adapter": adapter_sha256(session.run.adapter),
            "files": {path.name: file_sha256(path) for path in sorted(directory.iterdir())},
            "into": plan.into,
            "dtype": plan.dtype,
            **result.to_dict(),
            "compared_on": "held-out rows" if held_out else "training rows",
            "verification": verification.to_dict(),
        },
    )
    say(
        f"{directory}: {result.merged} modules merged in {result.seconds:.1f} s; same most likely "
        f"token at {verification.top1_agreement:.1%}, KL {verification.mean_kl:.1e} nats "
        f"(base without adapter: {verification.control_mean_kl:.1e})"
    )
    return Merged(directory, result, verification)
