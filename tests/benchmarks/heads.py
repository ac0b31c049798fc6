"""Regression, multi-label and tags: gain of the recipes over the baselines, and plain reloading.

    python -m tests.benchmarks.heads [--quick] [--output DIR] [--recipe NAME]

The recipes `score` (complexity of a function), `tag` (kinds of its statements) and `extract` (roles
of its names) are trained and evaluated with all of their arms, and their adapters reloaded by
transformers and PEFT alone in a separate process, whose outputs for the first items are compared
with those of the ledger; words with `is_split_into_words`, and their first tokens by `word_ids`.
Each run is a directory under `--output`; what is there already is not computed again. `--quick`
trains the head alone on a tenth of the rows.

Intervals are those of the verdict: 95%, by resampling modules, over all looks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from lora_kit.data.builtin.roles import role_rows
from lora_kit.data.scored import read_numbers
from lora_kit.evaluation.assembly import LEDGER
from lora_kit.evaluation.ledger import Entry, read_ledger
from lora_kit.evaluation.ledger_view import ADAPTER_ARM
from lora_kit.pipeline.training import Trained
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.machine import machine, versions
from tests.benchmarks.judged import judged, plain_outputs, show

RECIPES = ("score", "tag", "extract")
# Items whose outputs are compared.
ITEMS = 100
QUICK = (
    "adapter={method: head}",
    "data.train.0.limit=200",
    "training.micro_batch_size=null",
    "training.learning_rate=1.0e-2",
)
PLAIN = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
backbone, adapter, length = sys.argv[1:]
config = AutoConfig.from_pretrained(adapter)
base = AutoModelForSequenceClassification.from_pretrained(
    backbone, config=config, dtype=torch.float32)
model = PeftModel.from_pretrained(base, adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(backbone)
found = []
with torch.no_grad():
    for text in json.load(sys.stdin):
        inputs = tokenizer(
            text, truncation=True, max_length=int(length), return_tensors="pt")
        found.append(model(**inputs).logits[0].tolist())
print(json.dumps(found))
"""
# Of words, the logits at their first tokens, as log-probabilities in one row.
PLAIN_WORDS = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer
backbone, adapter, length = sys.argv[1:]
config = AutoConfig.from_pretrained(adapter)
base = AutoModelForTokenClassification.from_pretrained(
    backbone, config=config, dtype=torch.float32)
model = PeftModel.from_pretrained(base, adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(backbone)
found = []
with torch.no_grad():
    for words in json.load(sys.stdin):
        inputs = tokenizer(words, is_split_into_words=True, truncation=True,
            max_length=int(length), return_tensors="pt")
        numbers = inputs.word_ids()
        starts = [numbers.index(n) for n in sorted({n for n in numbers if n is not None})]
        logits = model(**inputs).logits[0, starts].double().log_softmax(-1)
        found.append(logits.flatten().tolist())
print(json.dumps(found))
"""


def main() -> None:
    """Train, evaluate, reload, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=Path("runs/heads"))
    parser.add_argument("--quick", action="store_true", help="the head alone, a tenth of the rows")
    parser.add_argument("--recipe", choices=RECIPES, help="one recipe; default: all")
    arguments = parser.parse_args()
    figures = {}
    for name in [arguments.recipe] if arguments.recipe else RECIPES:
        recipe = Recipe.load(name, list(QUICK) if arguments.quick else [])
        directory = arguments.output.absolute() / (f"{name}-quick" if arguments.quick else name)
        figures[name] = judged(recipe, directory, _largest_difference)
    for name, found in figures.items():
        show(name, found)
    print(json.dumps({"figures": figures, "machine": machine(), "versions": versions()}))


def _largest_difference(trained: Trained, recipe: Recipe) -> float:
    """Return the largest relative difference between plain outputs and those of the ledger."""
    ledger = read_ledger(trained.run.evaluation / LEDGER)
    entries = [entry for entry in ledger if entry.arm == ADAPTER_ARM][:ITEMS]
    has_words = recipe.training.objective == "token-classification"
    script: str = PLAIN
    given: list[Any] = [entry.prompt for entry in entries]
    if has_words:
        words = {row.origin: list(row.words) for row in role_rows()}
        script, given = PLAIN_WORDS, [words[entry.item] for entry in entries]
    length = str(recipe.data.max_length)
    plain = np.concatenate(plain_outputs(script, recipe, trained.run.adapter, given, length))
    own = np.concatenate([_outputs(entry) for entry in entries])
    return float(np.abs(plain - own).max() / np.abs(own).max())


def _outputs(entry: Entry) -> list[float]:
    """Return the logits of labels, or the numbers, which have six digits."""
    return list(entry.log_likelihoods) or list(read_numbers(entry.output).values())


if __name__ == "__main__":
    main()
