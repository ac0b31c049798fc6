"""Items of BIG-bench in `tests/data/bigbench`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "bigbench"


def bigbench_rows(task: str) -> list[dict[str, Any]]:
    """Return the rows of a task, in the order of its file (`README.md` beside it has the fields).

    Args:
        task: name of a file without its suffixes.
    """
    with gzip.open(DATA / f"{task}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
