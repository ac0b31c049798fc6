"""Embeddings: gain of the bundled recipe over the base and TF-IDF, and plain reloading.

    python -m tests.benchmarks.embeddings [--quick] [--output DIR] [--set FIELD=VALUE]

The recipe `embed` (the function that a sentence describes) is trained and evaluated with all of its
arms. The adapter is reloaded by transformers and PEFT alone in a separate process, whose vectors of
the first queries and documents are compared with those of the run. The run is a directory under
`--output`; what is there already is not computed again. `--quick` trains on a tenth of the rows.

Intervals are those of the verdict: 95%, by resampling modules, over all looks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lora_kit.adapter.saved import read_saved_head
from lora_kit.adapter.saved_heads import SavedEmbedding
from lora_kit.backbone.files import resolve
from lora_kit.data.labelled import encode_texts
from lora_kit.evaluation.ledger import read_ledger
from lora_kit.evaluation.verdict_file import read_verdict
from lora_kit.modeling.embeddings import embed_rows
from lora_kit.pipeline.evaluation import evaluate
from lora_kit.pipeline.training import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.machine import machine, versions

# Items whose vectors are compared.
ITEMS = 100
QUICK = ("data.train.0.limit=300", "training.epochs=1")
PLAIN = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer
backbone, adapter = sys.argv[1:]
saved = json.load(open(f"{adapter}/embedding.json"))
model = PeftModel.from_pretrained(
    AutoModel.from_pretrained(backbone, dtype=torch.float32), adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(backbone)
found = []
with torch.no_grad():
    for text in json.load(sys.stdin):
        inputs = tokenizer(
            text, truncation=True, max_length=saved["max_length"], return_tensors="pt")
        states = model(**inputs).last_hidden_state[0]
        pooled = {"mean": states.mean(0), "last": states[-1], "cls": states[0]}[saved["pooling"]]
        found.append((pooled / pooled.norm()).tolist())
print(json.dumps(found))
"""


def main() -> None:
    """Train, evaluate, reload, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=Path("runs/embeddings"))
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, once")
    parser.add_argument("--set", action="append", default=[], help="change a field of the recipe")
    arguments = parser.parse_args()
    recipe = Recipe.load("embed", [*(QUICK if arguments.quick else ()), *arguments.set])
    found = _measured(recipe, arguments.output.absolute() / ("quick" if arguments.quick else "all"))
    print(f"\n{found['items']} queries of {found['modules']} modules, base against adapter")
    for name, one in found["scores"].items():
        low, high = one["difference"][1:]
        shown = f"{one['difference'][0]:+.3f} ({low:+.3f} to {high:+.3f})"
        print(f"{name:18}{one['base']:8.3f}{one['adapter']:8.3f}  {shown}")
    for arm, one in found["baselines"].items():
        low, high = one["adapter_over"][1:]
        shown = f"{one['adapter_over'][0]:+.3f} ({low:+.3f} to {high:+.3f})"
        print(f"{arm:18}{one['score']:8.3f}  adapter over it {shown}")
    print(f"training {found['seconds']} s wall, {found['cpu_seconds']} s of CPU; largest")
    print(f"difference of a value of plain transformers' vectors {found['reloaded']:.1e}")
    print(json.dumps({"figures": found, "machine": machine(), "versions": versions()}))


def _measured(recipe: Recipe, directory: Path) -> dict[str, Any]:
    """Return the figures of a recipe, computed unless they are there."""
    path = directory / "figures.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    began = time.process_time()
    trained = train(recipe, directory, resume=True)
    cpu = time.process_time() - began
    evaluate(trained.session, stopping="none")
    (task,) = read_verdict(directory / "evaluation").verdict.suites[0].tasks
    own = {"base": task.base, "adapter": task.adapter, "difference": _interval(task.interval)}
    found = {
        "items": task.interval.items,
        "modules": task.interval.clusters,
        "scores": {
            task.unit: {name: _rounded(value) for name, value in own.items()},
            **{
                one.name: {"base": _rounded(one.base), "adapter": _rounded(one.adapter),
                           "difference": _interval(one.interval)}
                for one in task.measures
            },
        },
        "baselines": {
            one.arm: {"score": _rounded(one.mean), "adapter_over": _interval(one.interval)}
            for one in task.baselines
        },
        "seconds": round(trained.result.seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "reloaded": _largest_difference(trained.session, recipe, directory),
    }  # fmt: skip
    path.write_text(json.dumps(found))
    return found


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _interval(interval: Any) -> list[float]:
    return [round(value, 4) for value in (interval.delta, interval.low, interval.high)]


def _largest_difference(session: Any, recipe: Recipe, directory: Path) -> float:
    """Return the largest difference between a value of plain vectors and of the run's."""
    entries = [e for e in read_ledger(directory / "evaluation" / "ledger.parquet")
               if e.arm == "adapter"][:ITEMS]  # fmt: skip
    texts = [text for entry in entries for text in (entry.prompt, entry.reference)]
    saved = read_saved_head(directory / "adapter")
    assert isinstance(saved, SavedEmbedding)
    tokenizer = session.backbone.tokenizer
    rows = [ids for ids, _ in encode_texts(texts, tokenizer, saved.max_length)]
    device, pad = session.backbone.model.device, tokenizer.pad_token_id
    with torch.no_grad():
        own = embed_rows(session.model.eval(), rows, saved.pooling, pad, device, 2048)
    command = [sys.executable, "-c", PLAIN, str(resolve(recipe.backbone).directory)]
    told = subprocess.run([*command, str(directory / "adapter")], input=json.dumps(texts),
                          capture_output=True, text=True, check=True).stdout  # fmt: skip
    plain = np.array(json.loads(told.splitlines()[-1]))
    return float(np.abs(plain - own.cpu().numpy()).max())


if __name__ == "__main__":
    main()
