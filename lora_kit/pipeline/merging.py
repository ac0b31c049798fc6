"""Adapter to merged model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lora_kit.adapter.attach import ADAPTER_CONFIG, adapter_sha256, attach_saved
from lora_kit.backbone.encoder_decoder import writes_pairs
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import load
from lora_kit.data.dataset import open_rows, validation_rows
from lora_kit.data.tokenization import Example, tokenize_rows
from lora_kit.data.training_data import TrainingData
from lora_kit.data.units import PreparedUnits
from lora_kit.merging.answers import Questions, predict
from lora_kit.merging.in_memory import merge_adapter
from lora_kit.merging.measured import Measured, measure, questions_for
from lora_kit.merging.methods import adapter_configuration
from lora_kit.merging.partial import require_room
from lora_kit.merging.plan import MergePlan, MergeResult
from lora_kit.merging.record import MERGE_RECORD
from lora_kit.merging.reloaded import Computing
from lora_kit.merging.untouched import touched
from lora_kit.merging.verify import Verification, verify_merged
from lora_kit.modeling.generation import stop_token_ids
from lora_kit.recipe.backbone import BackboneSpec, DType
from lora_kit.recipe.conflicts.merging import loftq_on_original_weights
from lora_kit.recipe.data import DataSpec, SourceSpec
from lora_kit.recipe.sections import MERGED_ARMS, MergeBase, MergeSpec
from lora_kit.runs.directory import RunDirectory
from lora_kit.runs.session import Session, Subject, open_subject
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.files import replace_directory, write_json
from lora_kit.runtime.hashes import file_sha256

COMPARED_ROWS = 24
PROSE, ANSWERS = "python-reference", "stdlib-docstrings"
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


def merge(
    target: Path | Session,
    output: Path | None = None,
    backbone: BackboneSpec | None = None,
    base: MergeBase | None = None,
    dtype: DType | None = None,
) -> tuple[Merged, ...]:
    """Merge an adapter into its backbone and compare the result with the two together.

    Args:
        target: a run directory, an adapter directory, or an open session.
        output: where the model goes; by default `merged/` in the run. Where the recipe wants both
            bases, the one on the checkpoint's weights goes beside it, with `-original` to its name.
        backbone: of an adapter; what is set in it comes before what the adapter says.
        base: instead of the recipe's `merge.base`.
        dtype: instead of its `merge.dtype`.

    Returns:
        One merged model, or two.

    Raises:
        LoraKitError: if it cannot be merged.
    """
    if isinstance(target, Path):
        # What has nothing to merge is told before the backbone is loaded.
        is_adapter = (target / ADAPTER_CONFIG).is_file()
        adapter = target if is_adapter else RunDirectory(target).adapter
        if (adapter / ADAPTER_CONFIG).is_file():
            adapter_configuration(adapter)
    subject = open_subject(target, backbone)
    spec = subject.session.recipe.merge if subject.session else MergeSpec()
    spec = spec.model_copy(update={"base": base or spec.base, "dtype": dtype or spec.dtype})
    if spec.base == "both" and not _is_quantized(subject):
        raise MergeError("--base both: the backbone is not quantized, the two would be the same")
    if subject.session:
        merged = subject.session.recipe.model_copy(update={"merge": spec})
        for problem in loftq_on_original_weights(merged):
            raise MergeError(problem.describe())
    # Before the merge: what cannot be compared is not worth writing.
    compared = _compared(subject)
    return tuple(
        _merge_into(subject, spec, into, directory, output is None, compared)
        for into, directory in _places(subject, spec, output)
    )


def _places(subject: Subject, spec: MergeSpec, output: Path | None) -> Iterator[tuple[Into, Path]]:
    if output is None and subject.session is None:
        raise MergeError(f"{subject.adapter}: say with --output where the merged model goes")
    # `.` has no name; the directory that it is has one.
    output = output.absolute() if output else None
    first, second = (
        output.with_name(arm.replace("merged", output.name, 1))
        if output
        else subject.output.with_name(arm)
        for arm in MERGED_ARMS
    )
    if spec.base == "both":
        yield "dequantized", first
        yield "original", second
    elif spec.base == "original" or not _is_quantized(subject):
        yield "original", first
    else:
        yield "dequantized", first


def _is_quantized(subject: Subject) -> bool:
    return subject.backbone.spec.quantization != "none"


@dataclass(frozen=True)
class _Compared:
    """Examples that the merged model is compared on, and what rows they are of."""

    examples: list[Example]
    rows: str


def _compared(subject: Subject) -> _Compared:
    # Of an adapter alone, no data is known; what its base knows is asked of both.
    session = subject.session
    recipe = session.recipe if session else None
    if session and session.data and not isinstance(session.data.prepared, PreparedUnits):
        return _already_read(session.data)
    known = ANSWERS if writes_pairs(subject.backbone.tokenizer) else PROSE
    data = recipe.data if recipe else DataSpec(train=[SourceSpec(source=known)])
    seed = recipe.seed if recipe else 0
    objective = recipe.training.objective if recipe else "sft"
    held_out = validation_rows(data, seed)
    # Without replay: rows of the base's own are not there to be read again.
    rows = held_out or open_rows(data, seed, objective)
    several = tokenize_rows(
        rows[:COMPARED_ROWS].read(), subject.backbone.tokenizer, data.max_length, data.train_on
    )
    kind = "held-out rows" if held_out else "training rows" if recipe else f"rows of {known}"
    return _Compared([example for of_row in several for example in of_row], kind)


def _already_read(data: TrainingData) -> _Compared:
    held_out = data.held_out if data.held_out and data.held_out.size else None
    examples = (held_out or data.prepared).examples[:COMPARED_ROWS]
    return _Compared(list(examples), "held-out rows" if held_out else "training rows")


def _merge_into(
    subject: Subject,
    spec: MergeSpec,
    into: Into,
    directory: Path,
    replaced: bool,
    compared: _Compared,
) -> Merged:
    if not replaced:
        require_room(directory)
    plan = _plan(subject, spec, into)
    with _until_verified(directory) as unverified:
        result = merge_adapter(plan, unverified)
        verification = _verified(subject, plan, unverified, result, compared.examples)
        if spec.dtype == "auto" and plan.stored_dtype != "float32" and not verification.passed:
            say(
                f"{directory}: stored in {plan.stored_dtype}: {verification.reasons[0]}. Stored in "
                "float32 instead; merge.dtype chooses another one"
            )
            shutil.rmtree(unverified)
            plan = replace(plan, stored_dtype="float32")
            result = merge_adapter(plan, unverified)
            verification = _verified(subject, plan, unverified, result, compared.examples)
        files = {path.name: file_sha256(path) for path in sorted(unverified.iterdir())}
        merged = Merged(directory, into, result, verification)
        write_json(
            unverified / MERGE_RECORD,
            {
                "backbone": subject.backbone.fingerprint.digest,
                "adapter": adapter_sha256(subject.adapter),
                "files": files,
                "dtype": plan.stored_dtype,
                "compared_on": compared.rows,
                **{name: value for name, value in merged.to_dict().items() if name != "directory"},
            },
        )
    say(
        f"{directory}: {result.merged} parameters merged in {result.seconds:.1f} s; same most "
        f"likely token at {verification.top1_agreement:.1%}, KL {verification.mean_kl:.1e} nats "
        f"(base without adapter: {verification.control_mean_kl:.1e}){_kept(verification)}"
    )
    return merged


@contextmanager
def _until_verified(directory: Path) -> Iterator[Path]:
    """A hidden place for a model that takes `directory`'s once the block ends well.

    Its name is the same each time, so that a merge that was broken off is found again.
    """
    hidden = directory.parent / f".{directory.name}.unverified"
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        yield hidden
        replace_directory(hidden, directory)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _kept(found: Verification) -> str:
    if found.least_kept is None or found.most_kept is None:
        return "; no module could be tried by itself"
    return f"; of each module's change {found.least_kept:.1%} to {found.most_kept:.1%} are there"


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
    )


def _verified(
    subject: Subject,
    plan: MergePlan,
    directory: Path,
    result: MergeResult,
    examples: list[Example],
) -> Verification:
    """Against base + adapter: on the checkpoint's weights, if those were merged into."""
    questions = questions_for(subject.model, examples, stop_token_ids(subject.backbone))
    trained = None
    if plan.into == "dequantized" or not _is_quantized(subject):
        measured = measure(subject.model, questions)
        computing = Computing.of(subject.backbone.model)
    else:
        trained = predict(subject.model, examples)
        measured, computing = _on_the_checkpoint(subject, questions)
    found = verify_merged(directory, measured, questions, computing, plan.quantization, trained)
    odd = touched(plan.base, directory, result.untouched)
    if not odd:
        return found
    reason = (
        f"{len(odd)} tensors that the adapter leaves alone are not the backbone's, the first: "
        f"{odd[0]}"
    )
    return replace(found, reasons=(*found.reasons, reason))


def _on_the_checkpoint(subject: Subject, questions: Questions) -> tuple[Measured, Computing]:
    """Base + adapter on weights as they lie in the checkpoint; gone before the next is loaded."""
    spec = subject.backbone.spec.model_copy(update={"quantization": "none"})
    original = load(resolve(spec), spec)
    measured = measure(attach_saved(original, subject.adapter), questions)
    return measured, Computing.of(original.model)
