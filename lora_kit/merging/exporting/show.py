"""Read the texts of a comparison, and describe an export as text."""

from __future__ import annotations

from pathlib import Path

from lora_kit.merging.exporting.export import ExportResult
from lora_kit.merging.exporting.modelfile import modelfile_of
from lora_kit.runtime.errors import MergeError


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
    comparison, tolerances = result.comparison, result.limits
    tokens = (
        f", {comparison.same_tokens} of {comparison.texts} texts tokenized alike"
        if comparison.texts
        else ""
    )
    lines = [
        f"{result.path}: {result.type}, {result.weight_bytes / 1e6:.1f} MB; read back, the same "
        f"most likely token at {comparison.top1_agreement:.1%} of {comparison.positions} positions,"
        f" KL {comparison.mean_kl:.1e} nats (99th percentile {comparison.p99_kl:.1e}){tokens}"
    ]
    if not result.passed:
        lines.append(
            f"The export is NOT the model it was made from: it needs an agreement of "
            f"{tolerances.least_agreement:.1%}, a KL of at most {tolerances.most_mean_kl:.0e} nats "
            "and the same tokens for every text"
        )
    if result.to == "gguf":
        lines.append(f"{modelfile_of(result.path)}: for `ollama create NAME -f FILE`")
    lines += [f"  {warning}" for warning in result.warnings]
    lines.append(
        "The evaluation is of the model that this export was made from; evaluate the export itself "
        "before you rely on it"
    )
    return "\n".join(lines)
