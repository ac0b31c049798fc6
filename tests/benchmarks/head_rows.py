"""Rows that are added or weighed: pseudo-labels, a target domain, changed copies. Do they help?

    python -m tests.benchmarks.head_rows [--quick] [--output DIR] [--part NAME] [--seeds N]

all-MiniLM-L6-v2 with its head trained alone, on the area of the standard library that a text is of
(6 classes; files are clusters), judged by macro-F1 on test files. Each training is a run directory
under `--output`; what is there already is not trained again.

`unlabeled`: 100 labelled docstrings and 700 without a label (`data.unlabeled`); beside the labelled
ones alone, and beside all 800 with their labels, the most that could be gained.

`reweight`: 400 docstrings and 100 functions' code, judged on code (`data.reweight`); beside all
rows with the same weight, and beside the code alone.

`augmentation`: 100 docstrings with changed copies (`data.augmentation`), beside them without: with
as many epochs, and with as many steps.

`paraphrases`: the same with copies in the words of SmolLM2-135M-Instruct, beside as many steps.

Intervals: 95%, by resampling seeds and clusters of items both (2,000 times); `over_...`: the
difference of macro-F1 on the same seeds and items.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lora_kit.data.builtin.areas import AREA_OF
from lora_kit.data.builtin.functions import statement_rows
from lora_kit.data.labelled import classification_text
from lora_kit.data.rows import assign_split
from lora_kit.pipeline import evaluate, train
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.machine import machine, versions
from tests.benchmarks.classification import _suite, _written
from tests.benchmarks.labels import LabelledRow, _area_rows, _print, _recipe, _scores

LABELLED, UNLABELED, ITEMS = 100, 700, 500
DOCSTRINGS, CODE = 400, 100
WRITER = {"model": "smollm2-135m-instruct", "quantization": "none"}
# Rows with true labels, and the recipe's changes of them.
Way = tuple[Path, dict[str, Any]]
Part = Callable[[Path, int], dict[str, Way]]


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=Path("runs/head-rows"))
    parser.add_argument("--part", choices=tuple(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, a part")
    arguments = parser.parse_args()
    output = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    chosen = [arguments.part] if arguments.part else list(PARTS)
    if arguments.quick:
        chosen, arguments.seeds = chosen[:1], 1
    figures = {name: _measured(output, name, range(arguments.seeds)) for name in chosen}
    print(json.dumps({"figures": figures, "machine": machine(), "versions": versions()}))


def _measured(output: Path, name: str, seeds: Sequence[int]) -> dict[str, Any]:
    part, reference, suite = PARTS[name]
    runs: dict[str, list[Path]] = defaultdict(list)
    refused: dict[str, int] = defaultdict(int)
    for seed in seeds:
        place = output / name / f"seed-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        for way, (rows, changes) in part(place, seed).items():
            directory = place / way.replace(", ", "-")
            try:
                _run(directory, rows, suite(output), seed, changes)
                runs[way].append(directory)
            except DataError as error:
                print(f"{directory}: {error}", flush=True)
                refused[way] += 1
    # Differences are between the same seeds.
    whole = {way: places for way, places in runs.items() if len(places) == len(seeds)}
    scores = _scores(whole, reference)
    _print(name, scores)
    return {"macro_f1": scores, "refused": dict(refused)}


def _run(directory: Path, rows: Path, suite: Path, seed: int, changes: dict[str, Any]) -> None:
    """Train and evaluate a head, unless it is there."""
    if (directory / "evaluation" / "ledger.parquet").is_file():
        return
    print(directory, flush=True)
    document = _recipe(rows, suite, seed, {"truncated": 1.0}).model_dump(mode="json")
    for section, fields in changes.items():
        document[section] |= fields
    trained = train(Recipe.model_validate(document), directory, resume=True)
    evaluate(trained.session, stopping="none")


def _unlabeled(place: Path, seed: int) -> dict[str, Way]:
    drawn = random.Random(seed).sample(_area_rows("train"), LABELLED + UNLABELED)
    few = _written(place / "labelled.jsonl", drawn[:LABELLED])
    texts = [{"text": row["text"]} for row in drawn[LABELLED:]]
    source = {"source": str(_written(place / "texts.jsonl", texts))}

    def pseudo(**own: Any) -> dict[str, Any]:
        return {"data": {"unlabeled": {"texts": [source], **own}}}

    return {
        "labelled only": (few, {}),
        # As many steps as with about 200 texts.
        "labelled only, 3 times as long": (few, {"training": {"epochs": 60.0}}),
        "precision 0.9": (few, pseudo()),
        "precision 0.8": (few, pseudo(precision=0.8)),
        "precision 0.8, 3 rounds": (few, pseudo(precision=0.8, rounds=3)),
        "precision 0.6": (few, pseudo(precision=0.6)),
        "true labels": (_written(place / "all.jsonl", drawn), {}),
    }


def _reweight(place: Path, seed: int) -> dict[str, Way]:
    generator = random.Random(seed)
    docstrings = generator.sample(_area_rows("train"), DOCSTRINGS)
    code = generator.sample(_code_rows("train"), 2 * CODE)
    code, unlabeled = code[:CODE], code[CODE:]
    both = _written(place / "both.jsonl", docstrings + code)
    texts = _written(place / "target.jsonl", [{"text": row["text"]} for row in unlabeled])

    def weighed(clip: float) -> dict[str, Any]:
        return {"data": {"reweight": {"target": [{"source": str(texts)}], "clip": clip}}}

    return {
        "same weight": (both, {}),
        "weighed, clip 3": (both, weighed(3.0)),
        "weighed, clip 10": (both, weighed(10.0)),
        "target alone": (_written(place / "code.jsonl", code), {}),
    }


def _augmentation(place: Path, seed: int) -> dict[str, Way]:
    drawn = random.Random(seed).sample(_area_rows("train"), LABELLED)
    few = _written(place / "labelled.jsonl", drawn)

    def copied(**own: Any) -> Way:
        return few, {"data": {"augmentation": own}}

    return {
        "without copies": (few, {}),
        # As many steps as with four copies.
        "without copies, 5 times as long": (few, {"training": {"epochs": 100.0}}),
        "1 copy": copied(),
        "4 copies": copied(copies=4),
        "4 copies, dropout 0.3": copied(copies=4, dropout=0.3),
        # Refused where WordNet is not installed.
        "4 copies, synonyms alone": copied(copies=4, dropout=0.0, swaps=0.0, synonyms=0.3),
    }


def _paraphrases(place: Path, seed: int) -> dict[str, Way]:
    drawn = random.Random(seed).sample(_area_rows("train"), LABELLED)
    few = _written(place / "labelled.jsonl", drawn)
    copied = {"augmentation": {"paraphrase": {"writer": WRITER}}}
    return {
        # As many steps as with the copies, of which about 60 are left.
        "without copies, 1.6 times as long": (few, {"training": {"epochs": 32.0}}),
        "1 copy in other words": (few, {"data": copied}),
    }


@cache
def _code_rows(part: str) -> list[LabelledRow]:
    """Code of short functions of the modules with an area."""
    rows = []
    for row in statement_rows():
        area = AREA_OF.get(row.cluster.split("/")[0].removesuffix(".py"))
        if area and assign_split(row.cluster, 0.1, 0.3) == part:
            text = classification_text(row)
            rows.append({"text": text, "label": area, "cluster": row.cluster, "id": row.origin})
    return rows


def _docstring_suite(output: Path) -> Path:
    return _suite(output, "areas", {"source": "stdlib-areas", "limit": ITEMS})


def _code_suite(output: Path) -> Path:
    items = random.Random(0).sample(_code_rows("test"), ITEMS)
    source = _written(output / "code-test.jsonl", items)
    return _suite(output, "code-areas", {"source": str(source)})


# Ways of a seed, the way that others are compared with, and the suite.
PARTS: dict[str, tuple[Part, str, Callable[[Path], Path]]] = {
    "unlabeled": (_unlabeled, "labelled only", _docstring_suite),
    "reweight": (_reweight, "same weight", _code_suite),
    "augmentation": (_augmentation, "without copies, 5 times as long", _docstring_suite),
    "paraphrases": (_paraphrases, "without copies, 1.6 times as long", _docstring_suite),
}


if __name__ == "__main__":
    main()
