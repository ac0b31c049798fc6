"""Helpers that write rows to files of every kind and open sources."""

import csv
import json
from pathlib import Path
from typing import Any

from lora_kit.data.row_sets import Rows
from lora_kit.data.sources import open_source
from lora_kit.recipe.data import SourceSpec

PAIRS = [{"prompt": f"{n} + 1?", "completion": f"{n + 1:03d}"} for n in range(25)]


def opened(source: Path | str, **options: Any) -> Rows:
    spec = SourceSpec.model_validate({"source": str(source), **options})
    return open_source(spec, seed=0, field="data.train.0.source")


def answers(rows: Rows) -> list[str]:
    return [row.messages[-1].content for row in rows]


def save(rows: list[dict[str, Any]], path: Path) -> Path:
    import datasets

    if path.suffix.lower() in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(
                stream, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t"
            )
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    else:
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path
