"""A labelled source and a target without labels: do features that do not tell them apart help?

    python -m tests.benchmarks.domains [--quick] [--output DIR] [--seeds N] [--way NAME]

all-MiniLM-L6-v2 with LoRA, on the area of the standard library that a text is of (6 classes; files
are clusters). 400 docstrings have labels; the code of 400 functions has none; macro-F1 is measured
on the code of functions of unseen modules. `source only` has no target; `adversarial` and `coral`
are `training.domain_alignment`, `reweighted` is `data.reweight`. Beside them, what the target's
labels would give (`target labels`), and an encoder of the same shape with random weights, which was
never pretrained (`from scratch`).

Each training is a run directory under `--output`; what is there already is not trained again. The
weights were chosen beforehand: that of the adversarial method's paper, 1, and a tenth of it.

Intervals: 95%, by resampling seeds and clusters of items both (2,000 times); `over_source_only`:
the difference of macro-F1 on the same seeds and items.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from lora_kit.backbone.files import resolve
from lora_kit.backbone.open_files import build_model, open_config
from lora_kit.pipeline import evaluate, train
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.machine import machine, versions
from tests.benchmarks.classification import _written
from tests.benchmarks.head_rows import _code_rows, _code_suite
from tests.benchmarks.labels import _area_rows, _print, _recipe, _scores

ROWS = 400
REFERENCE = "source only"
LORA = {"method": "lora", "rank": 16, "alpha": 32}
TRAINING = {
    "epochs": 4.0,
    "learning_rate": 1e-3,
    # As in the recipe `tag`: a new head that learns as slowly as the adapter predicts one class.
    "lr_multipliers": {"classifier": 10.0},
    "batch_size": 16,
    "micro_batch_size": 16,
}


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=Path("runs/domains"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--way", action="append", help="one of the ways; may be repeated")
    parser.add_argument("--quick", action="store_true", help="one seed, a quarter of an epoch")
    arguments = parser.parse_args()
    output: Path = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    suite = _code_suite(output)
    runs: dict[str, list[Path]] = defaultdict(list)
    for seed in range(1 if arguments.quick else arguments.seeds):
        place = output / f"seed-{seed}"
        place.mkdir(exist_ok=True)
        for way, changes in _ways(output, place, seed).items():
            if arguments.way and way not in (REFERENCE, *arguments.way):
                continue
            if arguments.quick:
                changes = changes | {"training": changes.get("training", {}) | {"epochs": 0.25}}
            directory = place / way.replace(" ", "-")
            _run(directory, place, suite, seed, changes)
            runs[way].append(directory)
    scores = _scores(runs, REFERENCE)
    _print("code of functions", scores)
    print(json.dumps({"macro_f1": scores, "machine": machine(), "versions": versions()}))


def _ways(output: Path, place: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Return the changes of the recipe of each way; write the rows of a seed."""
    generator = random.Random(seed)
    docstrings = generator.sample(_area_rows("train"), ROWS)
    code = generator.sample(_code_rows("train"), ROWS)
    _written(place / "source.jsonl", docstrings)
    _written(place / "target.jsonl", [{"text": row["text"]} for row in code])
    labelled = _written(place / "labelled.jsonl", code)
    target = [{"source": str(place / "target.jsonl")}]

    def aligned(method: str, weight: float) -> dict[str, Any]:
        alignment = {"target": target, "method": method, "weight": weight}
        return {"training": {"domain_alignment": alignment}}

    return {
        REFERENCE: {},
        "adversarial 0.1": aligned("adversarial", 0.1),
        "adversarial 1": aligned("adversarial", 1.0),
        "coral 0.1": aligned("coral", 0.1),
        "coral 1": aligned("coral", 1.0),
        "reweighted": {"data": {"reweight": {"target": target}}},
        "from scratch": {"backbone": {"model": str(_never_pretrained(output))}},
        "target labels": {"data": {"train": [{"source": str(labelled)}]}},
    }


def _never_pretrained(output: Path) -> Path:
    """Write an encoder of the same shape and tokenizer with random weights; return its folder."""
    from transformers import AutoTokenizer

    folder = output / "random-encoder"
    if not folder.is_dir():
        from transformers import AutoModel

        files = resolve(_recipe(output, output, 0, {}).backbone).directory
        torch.manual_seed(0)
        build_model(AutoModel, open_config(files)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(files).save_pretrained(folder)
    return folder


def _run(directory: Path, place: Path, suite: Path, seed: int, changes: dict[str, Any]) -> None:
    """Train and evaluate, unless it is there."""
    if (directory / "evaluation" / "ledger.parquet").is_file():
        return
    print(directory, flush=True)
    rows = place / "source.jsonl"
    document = _recipe(rows, suite, seed, {"truncated": 1.0}).model_dump(mode="json")
    document["adapter"] = LORA
    document["training"] |= TRAINING
    for section, fields in changes.items():
        document[section] |= fields
    trained = train(Recipe.model_validate(document), directory, resume=True)
    evaluate(trained.session, stopping="none")


if __name__ == "__main__":
    main()
