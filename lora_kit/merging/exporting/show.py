"""Read the texts of a comparison, and describe an export as text."""

from __future__ import annotations

from pathlib import Path

from lora_kit.merging.exporting.comparison import ExportComparison
from lora_kit.merging.exporting.modelfile import modelfile_of
from lora_kit.merging.exporting.result import ExportResult
from lora_kit.merging.exporting.weights import WeightComparison
from lora_kit.runtime.errors import MergeError

# Number of tensors that are named.
NAMED = 4


def read_comparison_texts(path: Path) -> tuple[str, ...]:
    """Read the lines of a file that are not blank.

    Raises:
        MergeError: if the file cannot be read, or has no such line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MergeError(
            f"--texts {path}: cannot be read (got {error}). Fix: give a UTF-8 text file"
        ) from error
    texts = tuple(line for line in lines if line.strip())
    if not texts:
        raise MergeError(
            f"--texts {path}: no texts (got {len(lines)} blank lines). Fix: put one text on each "
            "line"
        )
    return texts


def describe_export(result: ExportResult) -> str:
    """Return files, size and distance of an export from its model, with warnings, as lines."""
    comparison = result.comparison
    tokens = (
        f", {comparison.same_tokens} of {comparison.texts} texts tokenized alike"
        if comparison.texts
        else ""
    )
    described, needed = (
        _describe_distributions(result, comparison)
        if isinstance(comparison, ExportComparison)
        else _describe_weights(comparison)
    )
    size = f"{result.path}: {result.type}, {result.weight_bytes / 1e6:.1f} MB"
    lines = [f"{size}; read back, {described}{tokens}"]
    if not result.passed:
        lines.append(
            f"The export is NOT the model it was made from: it needs {needed} and the same tokens "
            "for every text"
        )
    if result.converter is not None:
        lines.append(f"  written by {result.converter}")
    if result.to == "gguf":
        lines.append(f"{modelfile_of(result.path)}: for `ollama create NAME -f FILE`")
    lines += [f"  {warning}" for warning in result.warnings]
    lines.append(
        "The evaluation is of the model that this export was made from; evaluate the export itself "
        "before you rely on it"
    )
    return "\n".join(lines)


def _describe_distributions(result: ExportResult, comparison: ExportComparison) -> tuple[str, str]:
    """Return the distance, and the distance that is needed."""
    return (
        f"the same most likely token at {comparison.top1_agreement:.1%} of "
        f"{comparison.positions} positions, KL {comparison.mean_kl:.1e} nats (99th percentile "
        f"{comparison.p99_kl:.1e})",
        f"an agreement of {result.limits.least_agreement:.1%}, a KL of at most "
        f"{result.limits.most_mean_kl:.0e} nats",
    )


def _describe_weights(comparison: WeightComparison) -> tuple[str, str]:
    """Return the numbers of tensors that are the same and not, and what is needed."""
    counts = [f"{comparison.same} tensors have the model's values"]
    if comparison.reordered:
        counts.append(f"{comparison.reordered} have them in another order, which is not checked")
    for names, text in (
        (comparison.different, "have other values"),
        (comparison.not_compared, "have no partner of a known name and were not compared"),
    ):
        if names:
            counts.append(f"{len(names)} {text} ({', '.join(names[:NAMED])})")
    return "; ".join(counts), "tensors with the model's values, none with others"
