"""Labels: do suspected label errors and rows chosen to be labelled help?

    python -m tests.benchmarks.labels [--quick] [--output DIR] [--part errors|select] [--seeds N]

all-MiniLM-L6-v2 with its head trained alone, on rows of `stdlib-areas` (the area of the standard
library that a docstring is of, 6 classes; files are clusters), judged by macro-F1 on test files.
Each training is a run directory under `--output`; what is there already is not trained again.

`errors`: a tenth of the labels of 800 rows exchanged for another class. Precision and recall of the
suspects, by folds of clusters and of rows and by cleanlab's ways to choose them (the first is that
of `data.audit.label_errors`), and macro-F1 with the rows as they are, weighed down and dropped,
unless that is refused, beside that of the rows with their true labels.

`select`: 60 labelled rows and 60 more of the other rows, chosen by `lora-kit select` or at random.

Intervals: 95%, by resampling seeds and clusters of items both (2,000 times); `over_...`: the
difference of macro-F1 on the same seeds and items.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import load
from lora_kit.data.builtin.areas import area_rows
from lora_kit.data.dataset import open_rows
from lora_kit.data.head_targets import head_outputs
from lora_kit.data.labelled import classification_text
from lora_kit.data.rows import assign_split
from lora_kit.pipeline import evaluate, train
from lora_kit.pipeline.next_labels import select_texts
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.machine import machine, versions
from lora_kit.training.head_rows.label_errors import judge_labels
from tests.benchmarks.classification import (
    _answers,
    _draws,
    _interval,
    _macro_f1,
    _suite,
    _written,
)

ROWS, NOISE, ITEMS = 800, 0.1, 500
# Rows that are labelled at first, and rows that are added.
LABELLED = 60
STRATEGIES = ("both", "margin", "diversity")
# The first is that of `data.audit.label_errors`; the others are those of the paper.
FILTERS = (
    "low_self_confidence",
    "prune_by_class",
    "prune_by_noise_rate",
    "both",
    "confident_learning",
)
LabelledRow = dict[str, str]
ACTIONS: dict[str, tuple[bool, dict[str, str]]] = {
    "true labels": (False, {}),
    "exchanged": (True, {}),
    **{
        f"{action}, {folds}": (True, {"label_errors": action, "label_error_folds": folds})
        for folds in ("clusters", "rows")
        for action in ("weigh_down", "drop")
    },
}


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=Path("runs/labels"))
    parser.add_argument("--part", choices=("errors", "select"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, a quarter of the rows")
    arguments = parser.parse_args()
    output, seeds = arguments.output.absolute(), 1 if arguments.quick else arguments.seeds
    output.mkdir(parents=True, exist_ok=True)
    rows = _area_rows("train")
    size = ROWS // 4 if arguments.quick else ROWS
    limit = ITEMS // 4 if arguments.quick else ITEMS
    suite = _suite(output, "areas", {"source": "stdlib-areas", "limit": limit})
    parts = {"errors": _errors, "select": _select}
    chosen = [arguments.part] if arguments.part else list(parts)
    figures = {name: parts[name](output, suite, rows, size, range(seeds)) for name in chosen}
    print(json.dumps({"figures": figures, "machine": machine(), "versions": versions()}))


def _area_rows(part: str) -> list[LabelledRow]:
    return [
        {
            "text": classification_text(row),
            "label": str(row.label),
            "cluster": row.cluster,
            "id": row.origin,
        }
        for row in area_rows()
        if assign_split(row.cluster, 0.1, 0.3) == part
    ]


def _errors(
    output: Path, suite: Path, rows: list[LabelledRow], size: int, seeds: Sequence[int]
) -> dict[str, Any]:
    runs: dict[str, list[Path]] = defaultdict(list)
    refused: dict[str, int] = defaultdict(int)
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for seed in seeds:
        true = random.Random(seed).sample(rows, size)
        given, wrong = _exchanged(true, seed)
        files = {
            False: _written(output / f"true-{size}-{seed}.jsonl", true),
            True: _written(output / f"exchanged-{size}-{seed}.jsonl", given),
        }
        for folds in ("clusters", "rows"):
            audit = {"label_errors": "show", "label_error_folds": folds}
            for name, quality in _suspects(_recipe(files[True], suite, seed, audit), wrong).items():
                found[f"{folds}, {name}"].append(quality)
        for name, (is_noisy, audit) in ACTIONS.items():
            directory = output / f"errors-{size}" / name.replace(", ", "-") / f"seed-{seed}"
            try:
                _run(directory, files[is_noisy], suite, seed, audit)
                runs[name].append(directory)
            except DataError as error:
                print(f"{directory}: {error}")
                refused[name] += 1
    suspects = {
        name: {
            figure: _over_seeds([one[place] for one in values])
            for place, figure in enumerate(("precision", "recall", "share"))
        }
        for name, values in found.items()
    }
    for name, one in suspects.items():
        print(f"suspects, folds of {name:32} {one}")
    # Differences are between the same seeds.
    whole = {name: places for name, places in runs.items() if len(places) == len(seeds)}
    scores = _scores(whole, "exchanged")
    _print("errors", scores)
    return {"suspects": suspects, "macro_f1": scores, "refused": dict(refused)}


def _suspects(recipe: Recipe, wrong: set[int]) -> dict[str, tuple[float, float, float]]:
    """Precision, recall and share of the suspects of each of cleanlab's ways to choose them."""
    from cleanlab.filter import find_label_issues

    rows = open_rows(recipe.data, recipe.seed, "classification")
    outputs = head_outputs(rows, recipe)
    backbone = load(resolve(recipe.backbone), recipe.backbone, outputs)
    judged, labels, _ = judge_labels(recipe, rows, backbone)
    assert judged.known.all()
    quality = {}
    for name in FILTERS:
        chosen = find_label_issues(labels, judged.probabilities, filter_by=name, n_jobs=1)
        suspects = set(np.flatnonzero(chosen).tolist())
        hits = len(suspects & wrong)
        share = len(suspects) / len(labels)
        quality[name] = hits / max(len(suspects), 1), hits / len(wrong), share
    return quality


def _exchanged(rows: Sequence[LabelledRow], seed: int) -> tuple[list[LabelledRow], set[int]]:
    """Exchange a tenth of the labels; return the rows, and the indices of the wrong ones."""
    generator, classes = random.Random(f"{seed}/noise"), sorted({row["label"] for row in rows})
    wrong = set(generator.sample(range(len(rows)), round(NOISE * len(rows))))
    given = [
        row | {"label": generator.choice([name for name in classes if name != row["label"]])}
        if number in wrong
        else row
        for number, row in enumerate(rows)
    ]
    return given, wrong


def _select(
    output: Path, suite: Path, rows: list[LabelledRow], size: int, seeds: Sequence[int]
) -> dict[str, Any]:
    runs: dict[str, list[Path]] = defaultdict(list)
    for seed in seeds:
        place = output / f"select-{size}" / f"seed-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        drawn = random.Random(seed).sample(rows, size)
        known, pool = drawn[:LABELLED], drawn[LABELLED:]
        first = place / "labelled only"
        _run(first, _written(place / "labelled.jsonl", known), suite, seed, {})
        runs["labelled only"].append(first)
        texts = _written(place / "pool.jsonl", [{"text": row["text"]} for row in pool])
        for way in ("random", *STRATEGIES):
            added = [pool[number] for number in _chosen(way, first, texts, len(pool), seed)]
            _run(place / way, _written(place / f"{way}.jsonl", known + added), suite, seed, {})
            runs[way].append(place / way)
    scores = _scores(runs, "random")
    _print("select", scores)
    return {"macro_f1": scores}


def _chosen(way: str, run: Path, texts: Path, size: int, seed: int) -> list[int]:
    """Indices of the texts that are labelled next."""
    if way == "random":
        return random.Random(f"{seed}/select").sample(range(size), LABELLED)
    target = texts.with_name(f"{way}-chosen.jsonl")
    if not target.exists():
        select_texts(run, texts, LABELLED, way, target)
    chosen = [json.loads(line) for line in target.read_text().splitlines()]
    return [int(row["id"].rpartition(":")[2]) - 1 for row in chosen]


def _run(directory: Path, rows: Path, suite: Path, seed: int, audit: dict[str, str]) -> None:
    """Train and evaluate a head, unless it is there."""
    if (directory / "evaluation" / "ledger.parquet").is_file():
        return
    print(directory, flush=True)
    trained = train(_recipe(rows, suite, seed, audit), directory, resume=True)
    evaluate(trained.session, stopping="none")


def _recipe(rows: Path, suite: Path, seed: int, audit: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "labels",
            "seed": seed,
            "backbone": {"model": "all-minilm-l6-v2", "quantization": "none", "dtype": "float32"},
            "adapter": {"method": "head"},
            "data": {"train": [{"source": str(rows)}], "max_length": 64, "audit": audit},
            "training": {
                "objective": "classification",
                "batch_size": 16,
                "epochs": 20.0,
                "learning_rate": 1e-2,
            },
            "evaluation": {"suites": [str(suite)]},
        }
    )


def _scores(runs: dict[str, list[Path]], reference: str) -> dict[str, Any]:
    """Macro-F1 of each way with its interval, and its difference from the reference."""
    draws = {name: _draws(_answers(places), _macro_f1) for name, places in runs.items()}
    plain, key = draws[reference], f"over_{reference.replace(' ', '_')}"
    return {
        name: {
            "macro_f1": _interval(point, drawn),
            key: _interval(point - plain[0], drawn - plain[1]),
        }
        for name, (point, drawn) in draws.items()
    }


def _over_seeds(values: Sequence[float]) -> list[float]:
    """Mean, lowest and highest value."""
    return [round(float(one), 3) for one in (np.mean(values), min(values), max(values))]


def _print(part: str, scores: dict[str, Any]) -> None:
    print(f"\n{part} (95% interval)")
    for name, one in scores.items():
        cells = [
            f"{key} {mean:+.3f} ({low:+.3f} to {high:+.3f})"
            for key, (mean, low, high) in one.items()
        ]
        print(f"{name:24}" + "   ".join(cells))


if __name__ == "__main__":
    main()
