"""Results that another program measured -> verdict."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from lora_kit.evaluation.assembly import LEDGER, VERDICT
from lora_kit.evaluation.harness import Evaluation
from lora_kit.evaluation.imported.paired import entries_of, pair_results, suite_of_results
from lora_kit.evaluation.imported.read import read_results
from lora_kit.evaluation.imported.result import FIRST, Columns, TaskResults
from lora_kit.evaluation.judge import judge
from lora_kit.evaluation.ledger import Ledger, write_ledger
from lora_kit.evaluation.reporting.report import ReportFacts, write_report
from lora_kit.evaluation.verdict_file import SUITES, Lineage
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import whole_file, write_json
from lora_kit.runtime.hashes import file_sha256, json_sha256


def judge_results(
    base: Path,
    adapter: Path,
    output: Path,
    margin: float | None = None,
    alpha: float = 0.05,
    columns: Columns = FIRST,
    lower_is_better: bool = False,
) -> Evaluation:
    """Judge results of an adapter against those of its base, item by item, without a model.

    Args:
        base: file or folder of the base's results.
        adapter: file or folder of the adapter's results.
        output: directory of ledger, verdict and report.
        margin: largest tolerated loss, in the unit of the score; without one, a gain is judged.
        alpha: level of the test: one-sided with a margin, else two-sided.
        columns: score and cluster to read.
        lower_is_better: a lower score is better, where the files do not say it.

    Raises:
        LoraKitError: if a file cannot be read, or the files have different tasks or items.
    """
    before = read_results(base, columns, "--base")
    after = read_results(adapter, columns, "--adapter")
    pairs = pair_results(before, after)
    try:
        suite = suite_of_results(pairs, margin, alpha, lower_is_better)
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][-1] if first["loc"] else "margin"
        raise EvaluationError(
            f"--{name}: {first['msg']} (got {first['input']!r:.60}). Fix: give another value"
        ) from error
    output.mkdir(parents=True, exist_ok=True)
    with whole_file(output / LEDGER) as temporary:
        write_ledger(temporary, entries_of(suite, pairs))
        verdict = judge(Ledger(temporary), [suite])
        # The old verdict belongs to the old ledger, which is replaced at the end of this block.
        (output / VERDICT).unlink(missing_ok=True)
    write_json(output / SUITES, [suite.model_dump(mode="json")])
    lineage = Lineage(_digest(before), _digest(after), {suite.name: suite.digest})
    write_json(output / VERDICT, {**verdict.to_dict(), **asdict(lineage)})
    formats = sorted({one.format for one in before.values()})
    facts = {"Base": str(base), "Adapter": str(adapter), "Results of": ", ".join(formats)}
    write_report(output, verdict, Ledger(output / LEDGER), ReportFacts.dated(adapter.name, facts))
    return Evaluation(verdict, output)


def _digest(results: dict[str, TaskResults]) -> str:
    """Return the digest of the files of results."""
    return json_sha256(sorted({file_sha256(one.path) for one in results.values()}))
