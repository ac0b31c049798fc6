"""Adapter -> merged model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lora_kit.adapter.saved import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_sha256
from lora_kit.merging.in_memory import merge_adapter
from lora_kit.merging.methods import adapter_configuration
from lora_kit.merging.partial import require_empty_output
from lora_kit.merging.plan import MergePlan, MergeResult
from lora_kit.merging.record import MERGE_RECORD
from lora_kit.merging.verify import Verification
from lora_kit.modeling.generation import stop_token_ids
from lora_kit.pipeline.merged_comparison import (
    Compared,
    compared_examples,
    is_quantized,
    verify_against_base,
)
from lora_kit.recipe.backbone import BackboneSpec, DType
from lora_kit.recipe.conflicts.merging import loftq_on_original_weights
from lora_kit.recipe.sections import MERGED_ARMS, MergeBase, MergeSpec
from lora_kit.runs.directory import RunDirectory
from lora_kit.runs.session import Session, Subject, open_subject, require_run_or_adapter
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.files import read_json, replace_directory, write_json
from lora_kit.runtime.hashes import file_sha256

Into = Literal["dequantized", "original"]
BOTH: tuple[Into, Into] = ("dequantized", "original")


@dataclass(frozen=True)
class Merged:
    """A merged model and its comparison with base and adapter.

    Attributes:
        directory: directory of the merged model.
        into: weights that the adapter was added to.
        result: counts and durations of the merge.
        verification: comparison with base and adapter.
    """

    directory: Path
    into: Into
    result: MergeResult
    verification: Verification

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "directory": str(self.directory),
            "into": self.into,
            **self.result.to_dict(),
            "verification": self.verification.to_dict(),
        }


def merge(
    target: Path | Session,
    output: Path | None = None,
    backbone: BackboneSpec | None = None,
    base: MergeBase | None = None,
    dtype: DType | None = None,
    gpus: int | None = None,
) -> tuple[Merged, ...]:
    """Merge an adapter into its backbone and compare the result with backbone and adapter.

    Args:
        target: a run directory, an adapter directory, or an open session.
        output: directory of the model; by default `merged/` in the run. With both bases, the model
            on the checkpoint's weights goes beside it, with `-original` added to its name.
        backbone: backbone of an adapter; its fields override what the adapter records.
        base: overrides the recipe's `merge.base`.
        dtype: overrides the recipe's `merge.dtype`.
        gpus: overrides the recipe's `evaluation.gpus`; ignored for an open session.

    Returns:
        One merged model, or two with both bases.

    Raises:
        LoraKitError: if the adapter cannot be merged.
    """
    # All that can be refused without the backbone is refused before it is loaded.
    if isinstance(target, Path):
        require_run_or_adapter(target)
        run = RunDirectory(target)
        recipe = run.load_recipe() if run.recipe.is_file() else None
    else:
        run, recipe = target.run, target.recipe
    spec = recipe.merge if recipe else MergeSpec()
    spec = spec.model_copy(update={"base": base or spec.base, "dtype": dtype or spec.dtype})
    if recipe:
        for problem in loftq_on_original_weights(recipe.model_copy(update={"merge": spec})):
            raise MergeError(problem.describe())
    adapter = run.adapter if recipe else run.root
    if (adapter / ADAPTER_CONFIG).is_file():
        adapter_configuration(adapter)
    directories = _directories(run if recipe else None, adapter, spec, output)
    subject = open_subject(target, backbone, gpus)
    if spec.base == "both" and not is_quantized(subject):
        raise MergeError(
            "--base both: the backbone is not quantized, so the two would be the same. Fix: use "
            "original"
        )
    # Before the merge, since a model that cannot be compared is not worth writing.
    compared = compared_examples(subject)
    return tuple(
        _merge_into(subject, spec, into, directory, compared)
        for into, directory in zip(_bases(subject, spec), directories, strict=True)
    )


def _directories(
    run: RunDirectory | None, adapter: Path, spec: MergeSpec, output: Path | None
) -> list[Path]:
    """Return the directory of each merged model.

    Those that a caller names must be empty, or one of two that a killed call left.
    """
    arms = MERGED_ARMS if spec.base == "both" else MERGED_ARMS[:1]
    if output is None:
        if run is None:
            raise MergeError(f"{adapter}: no directory for the merged model. Fix: add --output DIR")
        return [run.merged_as(arm) for arm in arms]
    # `.` has no name of its own.
    output = output.absolute()
    directories = [output.with_name(arm.replace("merged", output.name, 1)) for arm in arms]
    is_unfinished = not all(directory.exists() for directory in directories)
    for directory, into in zip(directories, BOTH, strict=False):
        if not (is_unfinished and _is_same_merge(directory, adapter, into)):
            require_empty_output(directory)
    return directories


def _is_same_merge(directory: Path, adapter: Path, into: Into) -> bool:
    """Return True for one of two merges, left by a call that was killed before the other.

    The merge is done again.
    """
    record = directory / MERGE_RECORD
    if not record.is_file() or not (adapter / ADAPTER_WEIGHTS).is_file():
        return False
    found = read_json(record, MergeError)
    return (found.get("adapter"), found.get("into")) == (adapter_sha256(adapter), into)


def _bases(subject: Subject, spec: MergeSpec) -> tuple[Into, ...]:
    if spec.base == "both":
        return BOTH
    return (
        ("dequantized",) if spec.base == "dequantized" and is_quantized(subject) else ("original",)
    )


def _merge_into(
    subject: Subject, spec: MergeSpec, into: Into, directory: Path, compared: Compared
) -> Merged:
    plan = _plan(subject, spec, into)
    # Read before the comparison, which may close the subject's model.
    backbone = {"backbone": subject.backbone.fingerprint.digest, **_own_tokenizer(subject)}
    with _until_verified(directory) as unverified:
        result = merge_adapter(plan, unverified)
        verification = verify_against_base(subject, plan, unverified, result, compared.examples)
        if spec.dtype == "auto" and plan.stored_dtype != "float32" and not verification.passed:
            say(
                f"{directory}: {plan.stored_dtype} failed the verification "
                f"({verification.reasons[0]}); stored in float32 instead. Set merge.dtype to "
                "choose another dtype"
            )
            shutil.rmtree(unverified)
            plan = replace(plan, stored_dtype="float32")
            result = merge_adapter(plan, unverified)
            verification = verify_against_base(subject, plan, unverified, result, compared.examples)
        files = {path.name: file_sha256(path) for path in sorted(unverified.iterdir())}
        merged = Merged(directory, into, result, verification)
        write_json(
            unverified / MERGE_RECORD,
            {
                **backbone,
                "adapter": adapter_sha256(subject.adapter),
                "files": files,
                "dtype": plan.stored_dtype,
                "compared_on": compared.rows,
                **{name: value for name, value in merged.to_dict().items() if name != "directory"},
            },
        )
    say(
        f"{directory}: {result.merged} parameters merged in {result.seconds:.1f} s; most likely "
        f"token equal at {verification.top1_agreement:.1%} of positions, KL "
        f"{verification.mean_kl:.1e} nats (base without adapter: "
        f"{verification.control_mean_kl:.1e}){_kept(verification)}"
    )
    return merged


def _own_tokenizer(subject: Subject) -> dict[str, str]:
    digest = subject.backbone.adapter_tokenizer
    return {} if digest is None else {"tokenizer": digest}


@contextmanager
def _until_verified(directory: Path) -> Iterator[Path]:
    """Yield a hidden directory that replaces `directory` if the block succeeds."""
    hidden = directory.parent / f".{directory.name}.unverified"
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        yield hidden
        replace_directory(hidden, directory)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _kept(found: Verification) -> str:
    experts = "" if found.experts is None else f"; {found.experts.describe()}"
    if found.least_kept is None or found.most_kept is None:
        return experts or "; no module could be compared by itself"
    kept = f"; modules keep {found.least_kept:.1%} to {found.most_kept:.1%} of the adapter's effect"
    return kept + experts


def _plan(subject: Subject, spec: MergeSpec, into: Into) -> MergePlan:
    backbone = subject.backbone
    computed = str(backbone.spec.dtype)
    return MergePlan(
        base=backbone.files.directory,
        adapter=subject.adapter,
        quantization=backbone.spec.quantization,
        dtype=computed,
        quantized_modules=backbone.quantized_modules,
        into=into,
        stored_dtype=computed if spec.dtype == "auto" else spec.dtype,
        shard_bytes=int(spec.shard_size * 1e9),
        stop_token_ids=stop_token_ids(backbone),
        own_tokenizer=backbone.adapter_tokenizer is not None,
        masked=backbone.head is not None and backbone.head.kind == "mlm",
    )
