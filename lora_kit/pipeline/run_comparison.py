"""Runs, sweeps and seeds -> one page that shows them side by side; needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_kit.runtime.errors import EvaluationError
from lora_kit.selection.comparison.compare import compare_results
from lora_kit.selection.comparison.page import write_comparison
from lora_kit.selection.comparison.result import RunComparison
from lora_kit.selection.comparison.results import RunResults
from lora_kit.selection.comparison.runs import find_runs


def compare_runs(paths: Sequence[Path], output: Path) -> RunComparison:
    """Compare runs by their results on the items that they share, and write the page.

    Args:
        paths: directories of runs, sweeps and seeds.
        output: path of the page.

    Raises:
        LoraKitError: if a directory is no run, a run has no results, or backbones differ.
    """
    if output.is_dir():
        raise EvaluationError(
            f"--output: a directory (got {output}). Fix: name a file, such as compare.html"
        )
    runs = find_runs(paths)
    results = [RunResults(run) for run in runs]
    for run, result in zip(runs, results, strict=True):
        if result.backbone != results[0].backbone:
            raise EvaluationError(
                f"{run.name}: has another backbone than {runs[0].name} (got "
                f"{result.backbone[:12]} and {results[0].backbone[:12]}). Fix: compare runs of one "
                "backbone"
            )
    found = compare_results(runs, results)
    write_comparison(output, found)
    return found
