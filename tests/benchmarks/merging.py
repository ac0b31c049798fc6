"""Merging speed, memory and exactness beside PEFT and a plain copy of the files.

    python -m tests.benchmarks.merging [--quick] [--rounds N] [--large]

A random model in the shape of TinyLlama-1.1B, bfloat16, in shards of 500 MB, and a LoRA adapter of
rank 16 on all linear layers: merged by `merge_stream`, by PEFT (load, `merge_and_unload`, save in
shards of the same size), and its files copied. Each in a process of its own, turn about; seconds
are those of the work, imports left out on both sides; memory is all that the process held at most,
imports included. Every tensor of ours is compared, bit for bit, with base + scaling * B @ A in
float32, rounded once. `--large`: also a 7B shape (14 GB of bfloat16, and as much again for the
result), beside the copy alone. `--rounding`: what rounding the merged weights does, from which the
limits of the verification come: SmolLM2-135M in nf4 with an adapter trained on 24 rows, merged and
stored in float32, bfloat16 and float16, and merged into the checkpoint's own weights, each beside
base + adapter. All other weights are random: nothing here says anything of quality.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from lora_kit.runtime.machine import machine, peak_memory, versions

SHAPES = {
    "tiny": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
             "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 32000},
    "1.1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
             "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000},
}  # fmt: skip
RANK, ALPHA = 16, 32
SHARD_BYTES = 500 * 10**6
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="a 7B shape as well (28 GB of disk)")
    parser.add_argument(
        "--rounding", action="store_true", help="what rounding does, on a real model"
    )
    parser.add_argument("--shape", choices=tuple(SHAPES), default="1.1b")
    parser.add_argument(
        "--folder", type=Path, help="where the files go; by default a temporary one"
    )
    parser.add_argument("--only", choices=tuple(MEASURED), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(MEASURED[arguments.only](arguments.folder)))
        return
    if arguments.rounding:
        _print_rounding(arguments.folder)
        return
    rounds = 1 if arguments.quick else arguments.rounds
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = _rounds(Path(folder), arguments.shape, ("ours", "peft", "copy"), rounds)
        found["wrong_tensors"] = _figure("wrong", Path(folder), "wrong_tensors")
    if arguments.large:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            found["7b"] = _rounds(Path(folder), "7b", ("copy", "ours"), 1)
    _print(found)


def _rounds(folder: Path, shape: str, sides: tuple[str, ...], rounds: int) -> dict[str, object]:
    write_base(SHAPES[shape], folder / "base")
    write_adapter(SHAPES[shape], folder / "adapter")
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides[:: 1 if number % 2 == 0 else -1]:
            shutil.rmtree(folder / side, ignore_errors=True)
            runs[side].append(_in_process(side, folder))
    return {
        side: {
            "seconds": statistics.median(run["seconds"] for run in of_side),
            "peak_memory": max(run["peak_memory"] for run in of_side),
        }
        for side, of_side in runs.items()
    }


def _in_process(side: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", __spec__.name, "--only", side, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _figure(side: str, folder: Path, name: str) -> float:
    return _in_process(side, folder)[name]


def _modules(shape: dict[str, int]) -> Iterator[tuple[str, int, int]]:
    """Name, output and input features of each linear layer."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    narrow = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    sides = {"q_proj": (hidden, hidden), "k_proj": (narrow, hidden), "v_proj": (narrow, hidden),
             "o_proj": (hidden, hidden), "gate_proj": (inner, hidden), "up_proj": (inner, hidden),
             "down_proj": (hidden, inner)}  # fmt: skip
    for layer in range(shape["num_hidden_layers"]):
        for name in LINEAR:
            part = "mlp" if name in LINEAR[4:] else "self_attn"
            yield f"model.layers.{layer}.{part}.{name}", *sides[name]


def write_base(shape: dict[str, int], directory: Path) -> None:
    """A checkpoint of random bfloat16 weights, written tensor by tensor."""
    from huggingface_hub.constants import SAFETENSORS_INDEX_FILE
    from transformers import LlamaConfig

    from lora_kit.merging.tensors import PlannedTensor, write_tensors

    directory.mkdir(parents=True)
    config = LlamaConfig(**shape, architectures=["LlamaForCausalLM"], dtype="bfloat16")
    config.save_pretrained(directory)
    hidden = shape["hidden_size"]
    sizes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape["vocab_size"], hidden),
        **{f"{name}.weight": (out, into) for name, out, into in _modules(shape)},
        "model.norm.weight": (hidden,),
        "lm_head.weight": (shape["vocab_size"], hidden),
    }
    for layer in range(shape["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            sizes[f"model.layers.{layer}.{norm}.weight"] = (hidden,)
    planned = [
        PlannedTensor(key, torch.bfloat16, size, partial(_random, n, size))
        for n, (key, size) in enumerate(sizes.items())
    ]
    shards: list[list[PlannedTensor]] = [[]]
    for one in planned:
        if shards[-1] and sum(o.nbytes for o in shards[-1]) + one.nbytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(one)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(directory / name, shard)
        weight_map.update({one.key: name for one in shard})
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (directory / SAFETENSORS_INDEX_FILE).write_text(index)


def _random(seed: int, size: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(size, generator=generator) * 0.02).to(torch.bfloat16)


def write_adapter(shape: dict[str, int], directory: Path) -> None:
    """A LoRA adapter that changes each linear layer."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=list(LINEAR), task_type="CAUSAL_LM"
    ).save_pretrained(directory)
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, out, into in _modules(shape):
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANK, into, generator=generator) * 0.02
        tensors[f"{prefix}.lora_B.weight"] = torch.randn(out, RANK, generator=generator) * 0.02
    save_file(tensors, directory / "adapter_model.safetensors")


def _ours(folder: Path) -> dict[str, float]:
    import peft
    import transformers

    from lora_kit.merging.plan import MergePlan
    from lora_kit.merging.stream import merge_stream

    # Imported by name alone, these two load their parts at first use.
    _ = transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM, peft.PeftModel
    plan = MergePlan(
        base=folder / "base",
        adapter=folder / "adapter",
        quantization="none",
        dtype="bfloat16",
        quantized_modules=(),
        into="original",
        stored_dtype="bfloat16",
        shard_bytes=SHARD_BYTES,
        stop_token_ids=(2,),
    )
    result = merge_stream(plan, folder / "ours")
    return {"seconds": result.seconds, "peak_memory": peak_memory()}


def _peft(folder: Path) -> dict[str, float]:
    import peft
    import transformers

    _ = transformers.LlamaForCausalLM
    auto, adapted = transformers.AutoModelForCausalLM, peft.PeftModel
    started = time.monotonic()
    model = auto.from_pretrained(folder / "base", dtype=torch.bfloat16)
    merged = adapted.from_pretrained(model, folder / "adapter").merge_and_unload()
    merged.save_pretrained(folder / "peft", max_shard_size=SHARD_BYTES)
    return {"seconds": time.monotonic() - started, "peak_memory": peak_memory()}


def _copy(folder: Path) -> dict[str, float]:
    started = time.monotonic()
    shutil.copytree(folder / "base", folder / "copy")
    return {"seconds": time.monotonic() - started, "peak_memory": peak_memory()}


def _wrong(folder: Path) -> dict[str, float]:
    """Tensors of ours that are not the float32 sum rounded once."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    wrong = checked = 0
    for path in sorted((folder / "base").glob("*.safetensors")):
        with safe_open(path, framework="pt") as base:
            for key in base.keys():  # noqa: SIM118 - a safetensors file is no mapping
                expected = base.get_tensor(key)
                prefix = f"base_model.model.{key.removesuffix('.weight')}"
                if f"{prefix}.lora_A.weight" in adapter:
                    a, b = adapter[f"{prefix}.lora_A.weight"], adapter[f"{prefix}.lora_B.weight"]
                    expected = (expected.float() + (b @ a) * (ALPHA / RANK)).to(torch.bfloat16)
                wrong += not torch.equal(_merged(folder / "ours", key), expected)
                checked += 1
    return {"wrong_tensors": wrong, "checked": checked}


def _merged(directory: Path, key: str) -> torch.Tensor:
    from huggingface_hub.constants import SAFETENSORS_INDEX_FILE

    from lora_kit.merging.tensors import stored_tensors

    index = directory / SAFETENSORS_INDEX_FILE
    name = "model.safetensors"
    if index.is_file():
        name = json.loads(index.read_text())["weight_map"][key]
    return next(t for t in stored_tensors(directory / name) if t.key == key).read()


def _print_rounding(folder: Path | None) -> None:
    """The distance of each stored dtype from base + adapter, which is computed in float32."""
    from lora_kit.pipeline import merge, train
    from lora_kit.recipe.backbone import BackboneSpec
    from lora_kit.recipe.recipe import Recipe
    from lora_kit.recipe.sections import MergeSpec

    settings = {
        "float32": MergeSpec(dtype="float32"),
        "bfloat16": MergeSpec(dtype="bfloat16"),
        "float16": MergeSpec(dtype="float16"),
        "original weights": MergeSpec(base="original", dtype="float32"),
    }
    found = {}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        recipe = Recipe.load("quickstart", ["data.train.0.limit=24", "backbone.dtype=float32"])
        session = train(recipe, Path(place) / "run").session
        for name, spec in settings.items():
            changed = replace(session, recipe=recipe.model_copy(update={"merge": spec}))
            (merged,) = merge(changed)
            found[name] = merged.verification.to_dict()
        # Computed in bfloat16 as well, as on a GPU: by another backbone, so as an adapter alone.
        (session.run.adapter / "backbone.json").unlink()
        spec = BackboneSpec(model=recipe.backbone.model, quantization="nf4", dtype="bfloat16")
        (merged,) = merge(session.run.adapter, Path(place) / "bfloat16", spec)
        found["computed in bfloat16"] = merged.verification.to_dict()
    heads = ("top-1", "mean KL", "p99 KL", "control", "least kept", "half kept")
    print(f"{'':20}" + "".join(f"{head:>12}" for head in heads))
    for name, one in found.items():
        print(
            f"{name:20}{one['top1_agreement']:>12.4f}{one['mean_kl']:>12.1e}{one['p99_kl']:>12.1e}"
            f"{one['control_mean_kl']:>12.1e}{one['least_kept']:>12.4f}{one['median_kept']:>12.4f}"
        )
    print(json.dumps({"rounding": found, "machine": machine(), "versions": versions()}))


def _print(found: dict[str, dict[str, float]]) -> None:
    ours, peft, copy = found["ours"], found["peft"], found["copy"]
    print(f"{'':20}{'lora_kit':>12}{'PEFT':>12}{'copy':>12}")
    for name, scale, unit in (("seconds", 1, "s"), ("peak_memory", 1e9, "GB")):
        row = "".join(f"{one[name] / scale:>12.2f}" for one in (ours, peft, copy))
        print(f"{name.replace('_', ' ') + f' ({unit})':20}{row}")
    if "7b" in found:
        print(f"7B shape: {json.dumps(found['7b'])}")
    print(
        json.dumps(
            {
                "time_over_peft": round(ours["seconds"] / peft["seconds"], 3),
                "time_over_copy": round(ours["seconds"] / copy["seconds"], 3),
                "memory_over_peft": round(ours["peak_memory"] / peft["peak_memory"], 3),
                "found": found,
                "wrong_tensors": found["wrong_tensors"],
                "machine": machine(),
                "versions": versions(),
            }
        )
    )


MEASURED = {"ours": _ours, "peft": _peft, "copy": _copy, "wrong": _wrong}


if __name__ == "__main__":
    main()
