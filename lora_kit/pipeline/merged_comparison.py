"""Examples that a merged model is compared on, and its comparison with base and adapter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lora_kit.adapter.attach import attach_saved
from lora_kit.backbone.devices import room_on_gpus
from lora_kit.backbone.encoder_decoder import is_seq2seq_tokenizer
from lora_kit.backbone.files import resolve
from lora_kit.backbone.fingerprint import weight_files
from lora_kit.backbone.heads import is_masked_model
from lora_kit.backbone.load import load
from lora_kit.data.dataset import open_rows, validation_rows
from lora_kit.data.masked_texts import encode_masked_rows
from lora_kit.data.masking import TokenMasker
from lora_kit.data.supervision import Example
from lora_kit.data.tokenization import tokenize_rows
from lora_kit.data.training_data import TrainingData
from lora_kit.data.units import PreparedUnits
from lora_kit.merging.plan import MergePlan, MergeResult
from lora_kit.merging.predictions import ComparisonInputs, predict_log_probabilities
from lora_kit.merging.reference import ReferenceOutputs, build_comparison_inputs, compute_reference
from lora_kit.merging.reloaded import ComputeSettings
from lora_kit.merging.verify import Verification, modified_tensors, verify_merged
from lora_kit.modeling.generation import stop_token_ids
from lora_kit.recipe.data import DataSpec, SourceSpec
from lora_kit.recipe.mlm import MlmSpec
from lora_kit.runs.session import Subject

COMPARED_ROWS = 24
PROSE, ANSWERS = "python-reference", "stdlib-docstrings"


def is_quantized(subject: Subject) -> bool:
    """Return true if the backbone is loaded quantized."""
    return subject.backbone.spec.quantization != "none"


@dataclass(frozen=True)
class Compared:
    """Examples that the merged model is compared on, and the rows that they come from."""

    examples: list[Example]
    rows: str


def compared_examples(subject: Subject) -> Compared:
    """Return examples of the subject's run: held-out ones if it has any, else training rows.

    Args:
        subject: run or adapter that is merged.

    Raises:
        LoraKitError: if the rows of the run cannot be read any more.
    """
    # The data of an adapter without a run is unknown; bundled rows stand in for it.
    session = subject.session
    recipe = session.recipe if session else None
    is_masked = is_masked_model(subject.model)
    if session and session.data and not isinstance(session.data.prepared, PreparedUnits):
        read = _already_read(session.data)
        return _masked(read, subject) if is_masked else read
    known = ANSWERS if is_seq2seq_tokenizer(subject.backbone.tokenizer) else PROSE
    data = recipe.data if recipe else DataSpec(train=[SourceSpec(source=known)])
    seed = recipe.seed if recipe else 0
    objective = recipe.training.objective if recipe else "sft"
    held_out = validation_rows(data, seed)
    # Without replay: rows of the base's own are not there to be read again.
    rows = held_out or open_rows(data, seed, objective)
    tokenizer, chosen = subject.backbone.tokenizer, rows[:COMPARED_ROWS].read()
    several = (
        encode_masked_rows(chosen, tokenizer, data.max_length, split=False)
        if is_masked
        else tokenize_rows(chosen, tokenizer, data.max_length, data.train_on)
    )
    kind = "held-out rows" if held_out else "training rows" if recipe else f"rows of {known}"
    compared = Compared([example for of_row in several for example in of_row], kind)
    return _masked(compared, subject) if is_masked else compared


def _masked(compared: Compared, subject: Subject) -> Compared:
    """Return texts with the fixed masks of held-out rows."""
    recipe = subject.session.recipe if subject.session else None
    spec, seed = (recipe.mlm, recipe.seed) if recipe else (None, 0)
    masker = TokenMasker.of(subject.backbone.tokenizer, spec or MlmSpec(), seed)
    return replace(compared, examples=masker.held_out(compared.examples))


def _already_read(data: TrainingData) -> Compared:
    held_out = data.held_out if data.held_out and data.held_out.size else None
    examples = (held_out or data.prepared).examples[:COMPARED_ROWS]
    return Compared(list(examples), "held-out rows" if held_out else "training rows")


def verify_against_base(
    subject: Subject,
    plan: MergePlan,
    directory: Path,
    result: MergeResult,
    examples: list[Example],
) -> Verification:
    """Compare a merged model with base and adapter, on the weights that were merged into.

    Args:
        subject: run or adapter that was merged; its model may be closed afterwards.
        plan: plan of the merge.
        directory: directory of the merged model.
        result: counts of the merge.
        examples: examples of `compared_examples`.

    Raises:
        MergeError: if the merged model cannot be loaded or run.
    """
    questions = build_comparison_inputs(subject.model, examples, stop_token_ids(subject.backbone))
    trained = None
    if plan.into == "dequantized" or not is_quantized(subject):
        measured = compute_reference(subject.model, questions)
        computing = ComputeSettings.of(subject.backbone.model, subject.spec.gpus)
    else:
        trained = predict_log_probabilities(subject.model, examples)
        measured, computing = _on_the_checkpoint(subject, questions)
    _make_room(subject, directory)
    found = verify_merged(directory, measured, questions, computing, plan.quantization, trained)
    odd = modified_tensors(plan.base, directory, result.untouched, result.renamed)
    if not odd:
        return found
    reason = (
        f"{len(odd)} tensors without an adapter differ from the backbone's, the first: {odd[0]}"
    )
    return replace(found, reasons=(*found.reasons, reason))


def _make_room(subject: Subject, merged: Path) -> None:
    """Close the subject's model if the merged one does not fit beside it on the GPUs.

    Otherwise the merged model would be compared on the CPU. On a CPU both are mapped from files.
    """
    room = room_on_gpus(subject.spec.gpus)
    if room and sum(room.values()) < sum(path.stat().st_size for path in weight_files(merged)):
        subject.close()


def _on_the_checkpoint(
    subject: Subject, questions: ComparisonInputs
) -> tuple[ReferenceOutputs, ComputeSettings]:
    """Measure base and adapter on the checkpoint's own weights, then release that model."""
    spec = subject.backbone.spec.model_copy(update={"quantization": "none"})
    # The two need not fit into memory together.
    subject.close()
    head = subject.backbone.head
    outputs = head.outputs if head else None
    original = load(resolve(spec), spec, outputs, subject.spec.gpus)
    measured = compute_reference(attach_saved(original, subject.adapter), questions)
    return measured, ComputeSettings.of(original.model, subject.spec.gpus)
