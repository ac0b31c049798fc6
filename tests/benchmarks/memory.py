"""Peak memory of an evaluation of many items.

    python -m tests.benchmarks.memory [--quick] [--items N] [--layers N] [--dtype DTYPE]

Multiple choice, 100 tokens an item, and answers of 16 tokens to 64 prompts, the most rows that are
generated at once; base and adapter, with ledger, verdict and report. The backbone is SmolLM2-135M,
in float32 by default. On a slow machine `--layers 2` leaves out all but its first two layers:
what they would hold in weights is added to the peak; one layer's activations are freed before the
next's, so that their number adds none.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import yaml

from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.machine import machine, peak_memory, versions

WORDS = 72
CHOICES = 4
PROMPTS, NEW_TOKENS = 64, 16


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a rougher figure in two minutes")
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--layers", type=int, help="of the backbone; all by default")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.items, arguments.layers = 1_000, 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        left_out = _write_model(folder, arguments.layers, arguments.dtype)
        tokens = _write_suite(folder, arguments.items)
        started = time.monotonic()
        entries = _evaluate(folder, arguments.dtype)
        seconds = time.monotonic() - started
    peak = peak_memory()
    print(f"{arguments.items:,} items of {tokens:.0f} tokens, {entries:,} entries, {seconds:.0f} s")
    print(f"peak {peak / 1e9:.2f} GB, weights left out {left_out / 1e9:.2f} GB")
    print(
        json.dumps(
            {
                "peak_memory": peak + left_out,
                "measured_peak_memory": peak,
                "items": arguments.items,
                "tokens_per_item": tokens,
                "seconds": seconds,
                "layers": arguments.layers,
                "dtype": arguments.dtype,
                "machine": machine(),
                "versions": versions(),
            }
        )
    )


def _write_model(folder: Path, layers: int | None, dtype: str) -> int:
    """The backbone and an adapter that does something; gives the bytes of weights left out."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from lora_kit.backbone.files import resolve

    torch.manual_seed(0)
    directory = resolve(BackboneSpec(model="smollm2-135m-instruct")).directory
    config = AutoConfig.from_pretrained(directory)
    whole = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    all_layers = config.num_hidden_layers
    config.num_hidden_layers = layers or all_layers
    model = AutoModelForCausalLM.from_pretrained(directory, config=config, dtype=torch.float32)
    size = getattr(torch, dtype).itemsize
    left_out = size * (whole.num_parameters() - model.num_parameters())
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(directory).save_pretrained(folder / "model")
    adapted = get_peft_model(
        model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    adapted.save_pretrained(folder / "adapter")
    return int(left_out)


def _write_suite(folder: Path, items: int) -> float:
    """Questions of common words; gives the mean number of tokens of an item, choices included."""
    import pydoc_data.topics

    from transformers import AutoTokenizer

    generator = random.Random(0)
    text = " ".join(pydoc_data.topics.topics.values())
    words = sorted({word for word in text.split() if word.isalpha() and len(word) > 3})
    rows = [
        {
            "question": " ".join(generator.choices(words, k=WORDS // 2)),
            "choices": [" ".join(generator.choices(words, k=4)) for _ in range(CHOICES)],
            "answer": number % CHOICES,
        }
        for number in range(items)
    ]
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = [
        {"prompt": row["question"], "completion": row["choices"][0]} for row in rows[:PROMPTS]
    ]
    (folder / "told.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    tasks = [
        {"name": "quiz", "kind": "multiple_choice", "source": str(folder / "quiz.jsonl")},
        {
            "name": "told",
            "kind": "generation",
            "metric": "chrf",
            "source": str(folder / "told.jsonl"),
            "max_new_tokens": NEW_TOKENS,
        },
    ]
    (folder / "suite.yaml").write_text(
        yaml.safe_dump({"name": "many", "role": "gain", "tasks": tasks})
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    some = rows[:200]
    counts = [
        len(tokenizer(f"Question: {row['question']}\nAnswer: {' '.join(row['choices'])}").input_ids)
        for row in some
    ]
    return sum(counts) / len(some)


def _evaluate(folder: Path, dtype: str) -> int:
    from lora_kit.pipeline import evaluate

    spec = BackboneSpec(model=str(folder / "model"), quantization="none", dtype=dtype)
    done = evaluate(
        folder / "adapter",
        suites=[str(folder / "suite.yaml")],
        backbone=spec,
        output=folder / "evaluation",
        no_cache=True,
        stopping="none",
    )
    return len(done.read_entries())


if __name__ == "__main__":
    main()
