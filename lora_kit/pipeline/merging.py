"""Adapter to merged model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora_kit.adapters import adapter_sha256, attach_saved
from lora_kit.backbone import load, resolve
from lora_kit.console import say
from lora_kit.data.dataset import training_rows, validation_rows
from lora_kit.data.tokenization import Example, tokenize_rows
from lora_kit.evaluation.engine.run import stop_token_ids
from lora_kit.files import write_json
from lora_kit.gguf import file_sha256
from lora_kit.merging.in_memory import merge_adapter
from lora_kit.merging.stream import MergePlan, MergeResult
from lora_kit.merging.verify import Verification, measure, questions_for, verify_merged
from lora_kit.recipe import MERGED_ARMS
from lora_kit.releasing.gate import MERGE_RECORD
from lora_kit.session import Session, open_run

COMPARED_ROWS = 24
Into = Literal["dequantized", "original"]


@dataclass(frozen=True)
class Merged:
    """A merged model and how it compares with what was measured.

    Attributes:
        into: the weights that the adapter was added to.
    """

    directory: Path
    into: Into
    result: MergeResult
    verification: Verification

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "directory": str(self.directory),
            "into": self.into,
            **self.result.to_dict(),
            "verification": self.verification.to_dict(),
        }


def merge(target: Path | Session, output: Path | None = None) -> tuple[Merged, ...]:
    """Merge a run's adapter into its backbone and compare the result with what was measured.

    Args:
        target: a run directory or an open session.
        output: where the model goes; by default `merged/` in the run. Where the recipe wants both
            bases, the one on the checkpoint's weights goes beside it, with `-original` to its name.

    Returns:
        One merged model, or two.

    Raises:
        LoraKitError: if the run cannot be merged.
    """
    session = target if isinstance(target, Session) else open_run(target)
    # Before the merge: what cannot be compared is not worth writing.
    examples, compared_on = _compared(session)
    return tuple(
        _merge_into(session, into, directory, output is None, examples, compared_on)
        for into, directory in _places(session, output)
    )


def _places(session: Session, output: Path | None) -> Iterator[tuple[Into, Path]]:
    first, second = (
        output.with_name(arm.replace("merged", output.name, 1))
        if output
        else session.run.merged_as(arm)
        for arm in MERGED_ARMS
    )
    wanted = session.recipe.merge.base
    if wanted == "both":
        yield "dequantized", first
        yield "original", second
    elif wanted == "original" or session.recipe.backbone.quantization == "none":
        yield "original", first
    else:
        yield "dequantized", first


def _compared(session: Session) -> tuple[list[Example], str]:
    """Examples that the merged model is compared on, and what rows they are of."""
    recipe = session.recipe
    held_out = validation_rows(recipe.data, recipe.seed)
    rows = held_out or training_rows(recipe.data, recipe.seed)[0]
    several = tokenize_rows(
        rows[:COMPARED_ROWS].read(),
        session.backbone.tokenizer,
        recipe.data.max_length,
        recipe.data.labels,
    )
    found = [example for of_row in several for example in of_row]
    return found, "held-out rows" if held_out else "training rows"


def _merge_into(
    session: Session,
    into: Into,
    directory: Path,
    replaced: bool,
    examples: list[Example],
    compared_on: str,
) -> Merged:
    if replaced:
        shutil.rmtree(directory, ignore_errors=True)
    plan = _plan(session, into)
    result = merge_adapter(plan, directory)
    verification = _verified(session, into, directory, examples)
    merged = Merged(directory, into, result, verification)
    write_json(
        directory / MERGE_RECORD,
        {
            "backbone": session.backbone.fingerprint.digest,
            "adapter": adapter_sha256(session.run.adapter),
            "files": {path.name: file_sha256(path) for path in sorted(directory.iterdir())},
            "dtype": plan.stored_dtype,
            "compared_on": compared_on,
            **{name: value for name, value in merged.to_dict().items() if name != "directory"},
        },
    )
    say(
        f"{directory}: {result.merged} parameters merged in {result.seconds:.1f} s; same most "
        f"likely token at {verification.top1_agreement:.1%}, KL {verification.mean_kl:.1e} nats "
        f"(base without adapter: {verification.control_mean_kl:.1e}), at least "
        f"{verification.least_kept:.1%} of each module's change kept"
    )
    return merged


def _plan(session: Session, into: Into) -> MergePlan:
    backbone, recipe = session.backbone, session.recipe
    computed = str(backbone.spec.dtype)
    return MergePlan(
        base=backbone.files.directory,
        adapter=session.run.adapter,
        quantization=recipe.backbone.quantization,
        dtype=computed,
        quantized_modules=backbone.quantized_modules,
        into=into,
        stored_dtype=computed if recipe.merge.dtype == "auto" else recipe.merge.dtype,
        shard_bytes=int(recipe.merge.shard_size * 1e9),
        stop_token_ids=stop_token_ids(backbone),
    )


def _verified(
    session: Session, into: Into, directory: Path, examples: list[Example]
) -> Verification:
    """Against base + adapter: on the checkpoint's weights, if those were merged into."""
    model = session.model
    questions = questions_for(model, examples, stop_token_ids(session.backbone))
    if into == "dequantized" or session.recipe.backbone.quantization == "none":
        return verify_merged(
            directory, measure(model, questions), questions, session.backbone.model
        )
    spec = session.backbone.spec.model_copy(update={"quantization": "none"})
    original = load(resolve(spec), spec)
    measured = measure(attach_saved(original, session.run.adapter), questions)
    return verify_merged(directory, measured, questions, original.model, trained=model)
