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
from pathlib import Path

import numpy as np
import torch

from lora_kit.adapter.saved import read_saved_head
from lora_kit.adapter.saved_heads.embedding import SavedEmbedding
from lora_kit.data.labelled import encode_texts
from lora_kit.evaluation.assembly import LEDGER
from lora_kit.evaluation.ledger import read_ledger
from lora_kit.evaluation.ledger_view import ADAPTER_ARM
from lora_kit.modeling.embeddings import embed_rows
from lora_kit.pipeline.training import Trained
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.machine import machine, versions
from tests.benchmarks.judged import judged, plain_outputs, show

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
    directory = arguments.output.absolute() / ("quick" if arguments.quick else "all")
    found = judged(recipe, directory, _largest_difference)
    show("embed", found)
    print(json.dumps({"figures": found, "machine": machine(), "versions": versions()}))


def _largest_difference(trained: Trained, recipe: Recipe) -> float:
    """Return the largest difference between a value of plain vectors and of the run's."""
    ledger, session = read_ledger(trained.run.evaluation / LEDGER), trained.session
    entries = [entry for entry in ledger if entry.arm == ADAPTER_ARM][:ITEMS]
    texts = [text for entry in entries for text in (entry.prompt, entry.reference)]
    saved = read_saved_head(trained.run.adapter)
    assert isinstance(saved, SavedEmbedding)
    tokenizer = session.backbone.tokenizer
    rows = [ids for ids, _ in encode_texts(texts, tokenizer, saved.max_length)]
    device, pad = session.backbone.model.device, tokenizer.pad_token_id
    with torch.no_grad():
        own = embed_rows(session.model.eval(), rows, saved.pooling, pad, device, 2048)
    plain = np.array(plain_outputs(PLAIN, recipe, trained.run.adapter, texts))
    return float(np.abs(plain - own.cpu().numpy()).max())


if __name__ == "__main__":
    main()
