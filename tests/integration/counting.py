"""Runs a `lora-kit` command and counts what it reads, tokenizes, hashes and judges.

python -m tests.integration.counting COUNTS.json COMMAND [ARGUMENT...]
"""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lora_kit

COUNTS: Counter[str] = Counter()


def count_calls(module: str, name: str, label: Callable[..., Iterable[str]]) -> None:
    """Count the calls of a function, wherever it was imported to, by what `label` says of them."""
    function = getattr(importlib.import_module(module), name)

    @functools.wraps(function)
    def counted(*arguments: Any, **keywords: Any) -> Any:
        COUNTS.update(f"{name}: {what}" for what in label(*arguments, **keywords))
        return function(*arguments, **keywords)

    for loaded in [one for key, one in sys.modules.items() if key.startswith("lora_kit")]:
        for attribute, value in list(vars(loaded).items()):
            if value is function:
                setattr(loaded, attribute, counted)


def count_all() -> None:
    """Wrap each function that reads a source, a suite, a weight or a ledger."""
    for found in pkgutil.walk_packages(lora_kit.__path__, "lora_kit."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    count_calls("lora_kit.data.sources", "open_source", lambda spec, *_, **__: [_of_source(spec)])
    count_calls(
        "lora_kit.data.tokenization",
        "tokenize_rows",
        lambda rows, *_, **__: [row.origin for row in rows],
    )
    count_calls("lora_kit.evaluation.suite", "load_suites", lambda references: map(str, references))
    count_calls(
        "lora_kit.evaluation.engine.planning",
        "_plan",
        lambda suite, spec, *_: [_of_task(suite, spec)],
    )
    count_calls("lora_kit.runtime.hashes", "_hash", lambda path: [str(Path(path).resolve())])
    count_calls("lora_kit.runtime.hash_cache", "_recall", lambda path: [str(Path(path).resolve())])
    count_calls("lora_kit.evaluation.judge", "judge", lambda *_: ["a ledger"])


def _of_source(spec: Any) -> str:
    return f"{spec.source}/{spec.split}"


def _of_task(suite: Any, spec: Any) -> str:
    return f"{suite.name}/{spec.name}"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    count_all()
    from lora_kit.cli import main

    try:
        main(sys.argv[2:])
    finally:
        place.write_text(json.dumps(COUNTS, indent=1))
