"""Time and peak memory of preparing many rows, and whether memory grows with them.

    python -m tests.benchmarks.rows [--quick] [--rows N]

Two files of JSON lines, of N / 10 and of N short rows, texts and pairs of prompt and completion in
turn. Each is tokenized in a process of its own, with an empty cache, and then once more, when it is
found there. `memory_ratio` is the peak resident memory at N rows over that at N / 10.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.data import DataSpec
from lora_kit.runtime.machine import machine, peak_memory, versions

TEXT = "the a small large red blue old new house tree river goes comes stays runs falls"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the larger file")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(_prepare(arguments.only, arguments.tokenizer)))
        return
    larger = arguments.rows // 10 if arguments.quick else arguments.rows
    figures = {rows: _measured(rows) for rows in (larger // 10, larger)}
    print(f"{'rows':>10}{'tokens':>12}{'seconds':>10}{'found, s':>10}{'peak, GB':>10}")
    for rows, (made, found) in figures.items():
        print(
            f"{rows:>10,}{made['tokens']:>12,.0f}{made['seconds']:>10.1f}{found['seconds']:>10.2f}"
            f"{made['peak_memory'] / 1e9:>10.3f}"
        )
    (few, _), (many, again) = figures.values()
    print(
        json.dumps(
            {
                "memory_ratio": many["peak_memory"] / few["peak_memory"],
                "peak_memory": many["peak_memory"],
                "found_memory_ratio": again["peak_memory"] / few["peak_memory"],
                "rows": larger,
                "rows_per_second": larger / many["seconds"],
                "seconds_when_found": again["seconds"],
                "machine": machine(),
                "versions": versions(),
            }
        )
    )


def _measured(rows: int) -> list[dict[str, float]]:
    """Measure a first and a second process on a file of so many rows."""
    from lora_kit.backbone.files import resolve

    tokenizer = resolve(BackboneSpec(model="smollm2-135m-instruct")).directory
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        _write(path, rows)
        command = [sys.executable, "-m", "tests.benchmarks.rows", "--only", str(path)]
        command += ["--tokenizer", str(tokenizer)]
        environment = {**os.environ, "XDG_CACHE_HOME": str(Path(folder) / "cache")}
        outputs = [
            subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=environment
            ).stdout
            for _ in range(2)
        ]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def _write(path: Path, rows: int) -> None:
    generator, vocabulary = random.Random(0), TEXT.split()
    with path.open("w") as stream:
        for number in range(rows):
            words = " ".join(generator.choices(vocabulary, k=12))
            row = {"text": words} if number % 2 else {"prompt": words, "completion": words[:20]}
            stream.write(json.dumps(row) + "\n")


def _prepare(source: str, tokenizer: str) -> dict[str, float]:
    from transformers import AutoTokenizer

    from lora_kit.data.dataset import prepare
    from tests.training_rows import training_rows

    spec = DataSpec.model_validate({"train": [{"source": source}]})
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    started = time.monotonic()
    rows, replay = training_rows(spec, 0)
    data = prepare(rows, loaded, spec, replay)
    assert len(data.to_dataset()) == len(data.lengths) == len(rows)
    return {
        "seconds": time.monotonic() - started,
        "tokens": data.counts.tokens,
        "peak_memory": peak_memory(),
    }


if __name__ == "__main__":
    main()
