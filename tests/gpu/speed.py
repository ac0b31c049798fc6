"""Speed and memory of a training at the shape of a large model with random weights, beside TRL.

A step is `packs` packs of `length` tokens, each of examples of one length, so that every step
computes the same. The weights are random: nothing here says anything of quality.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from tests.gpu.ceilings import synchronize
from tests.gpu.material import Setting, device, random_model, token_lists
from tests.gpu.runner import Case, Figures, Unavailable
from tests.gpu.variants import (
    FEW,
    LATE,
    VARIANTS,
    Variant,
    applied,
    attention_of,
    restore,
)

NEEDS = ("pydantic", "peft", "trl", "datasets", "evaluate", "gguf")
RANK, ALPHA = 16, 32
DIGEST = "0" * 64


@dataclass
class Bases:
    """The base models that are measured; one at a time is kept.

    Attributes:
        setting: sizes.
    """

    setting: Setting
    _kept: dict[str, Any] = field(default_factory=dict)

    def get(self, quantization: str) -> Any:
        """Return a base, built if the last one was another."""
        if quantization not in self._kept:
            self.drop()
            self._kept[quantization] = random_model(self.setting.config, quantization)
        return self._kept[quantization]

    def drop(self) -> None:
        """Free the base."""
        self._kept.clear()
        gc.collect()
        if device().type == "cuda":
            torch.cuda.empty_cache()


def cases(setting: Setting, bases: Bases) -> Sequence[Case]:
    """Return the measurements; those of one base follow one another."""
    variants = [one for one in VARIANTS if not setting.is_tiny or one.name in FEW]
    ordered = sorted(variants, key=lambda one: one.quantization != "none")
    return [
        *(_case(setting, bases, one) for one in ordered),
        Case("trl", partial(of_trl, setting, bases), seconds=60),
        Case("plan", partial(planned, setting), seconds=60),
    ]


def late_cases(setting: Setting, bases: Bases) -> Sequence[Case]:
    """Return the measurements that compile, or change classes for all that follows."""
    # Compiling takes longer than all else on a CPU.
    late = [one for one in LATE if not setting.is_tiny or "compile" not in dict(one.training)]
    peer = partial(of_trl, setting, bases, True)
    return [
        *(_case(setting, bases, one) for one in late),
        Case("trl-liger", peer, ("liger_kernel",)),
    ]


def _case(setting: Setting, bases: Bases, variant: Variant) -> Case:
    needs = ["bitsandbytes"] if variant.quantization != "none" else []
    needs += ["liger_kernel"] if "liger" in dict(variant.training) else []
    run = partial(measured, setting, bases, variant)
    return Case(variant.name, run, needs, variant.seconds)


def recipe(setting: Setting, variant: Variant, batch_size: int | None = None) -> Any:
    """Return the recipe of a variant."""
    from lora_kit.recipe.recipe import Recipe

    return Recipe.model_validate(
        {
            "name": "speed",
            "backbone": {
                "model": "random",
                "quantization": variant.quantization,
                "dtype": "bfloat16",
            },
            "adapter": {"rank": RANK, "alpha": ALPHA},
            "data": {
                "train": [{"source": "stdlib-docstrings"}],
                "max_length": setting.length,
                "packing": True,
            },
            "training": {
                "batch_size": batch_size or setting.packs * setting.examples,
                "learning_rate": 1e-4,
                "lr_scheduler": "constant",
                "gradient_checkpointing": variant.checkpointing,
                **dict(variant.training),
            },
        }
    )


def backbone_of(setting: Setting, model: Any, spec: Any) -> Any:
    """Return a model in memory as a loaded backbone; no file has its weights."""
    from lora_kit.backbone.files import BackboneFiles
    from lora_kit.backbone.fingerprint import Fingerprint
    from lora_kit.backbone.load import Backbone, guard_quantized_modules

    quantized = () if spec.quantization == "none" else tuple(guard_quantized_modules(model))
    storage = "none" if spec.quantization == "none" else f"{spec.quantization}-bitsandbytes-double"
    return Backbone(
        model=model,
        tokenizer=setting.tokenizer,
        files=BackboneFiles("random", None, setting.folder),
        spec=spec,
        fingerprint=Fingerprint(DIGEST, DIGEST, DIGEST, storage, "bfloat16"),
        quantized_modules=quantized,
    )


@contextmanager
def adapted(setting: Setting, bases: Bases, variant: Variant, chosen: Any) -> Iterator[Any]:
    """Yield the backbone of a variant and its PEFT model; the base is as before afterwards."""
    from lora_kit.adapter.attach import attach

    attention = attention_of(variant)
    base = bases.get(variant.quantization)
    base.set_attn_implementation(attention)
    spec = chosen.backbone.model_copy(update={"attention": attention})
    backbone = backbone_of(setting, base, spec)
    model = attach(backbone, chosen.adapter, 0)
    try:
        with applied(variant, model):
            yield backbone, model
    finally:
        model.unload()
        restore(base)


def prepared(examples: Sequence[Sequence[int]]) -> Any:
    """Return examples as prepared data, every token but the first supervised."""
    from pyarrow import Table

    from lora_kit.data.prepared import PreparedData, Tally
    from lora_kit.data.rows import Row
    from lora_kit.data.supervision import IGNORE_INDEX, Example

    made = [Example(tuple(ids), (IGNORE_INDEX, *ids[1:])) for ids in examples]
    tally = Tally(["random"])
    for example in made:
        tally.add(Row("", ""), 0, [example])
    table = Table.from_batches([tally.record(made, [0] * len(made))])
    return PreparedData(table, tally.counts(), tally.digest())


def lists(setting: Setting, steps: int) -> list[list[int]]:
    """Return the tokens of some steps, each of `packs` full packs."""
    return token_lists(
        steps * setting.packs * setting.examples,
        setting.length // setting.examples,
        setting.config.vocab_size,
    )


def measured(setting: Setting, bases: Bases, variant: Variant) -> Figures:
    """Return tokens per second and memory of the package's own training."""
    chosen = recipe(setting, variant)
    with adapted(setting, bases, variant, chosen) as (backbone, model):
        if device().type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        result = train(setting, chosen, backbone, model, setting.steps)
        first, last = result.history[0], result.history[-1]
        rate = (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])
        return {
            "tokens_per_second": rate,
            "first_step_seconds": first["seconds"],
            "losses": [entry["loss"] for entry in result.history],
            "attention": backbone.spec.attention,
            **_memory(),
        }


def train(setting: Setting, chosen: Any, backbone: Any, model: Any, steps: int) -> Any:
    """Run the package's training on random packs in a new run directory."""
    import shutil

    from lora_kit.runs.directory import RunDirectory
    from lora_kit.training.inputs import TrainingInputs
    from lora_kit.training.trainer import run_training

    run = RunDirectory(setting.folder / "speed")
    data = prepared(lists(setting, steps))
    try:
        return run_training(TrainingInputs(chosen, backbone, model, data, None, run))
    finally:
        shutil.rmtree(run.root, ignore_errors=True)


def _memory() -> Figures:
    if device().type != "cuda":
        return {"allocated": None, "reserved": None}
    return {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
    }


def planned(setting: Setting) -> Figures:
    """Return the bytes that `plan` estimates, without those of libraries, by variant."""
    from lora_kit.preflight.memory import CUDA_BASE, estimate_memory
    from lora_kit.preflight.micro_batch import MicroBatch

    kind: Any = "cuda" if device().type == "cuda" else "cpu"
    supervised = setting.length - setting.examples
    batch = MicroBatch(1, setting.length, supervised, masked=True)
    chosen = [v for v in VARIANTS[:4] if not setting.is_tiny or v.name in FEW]
    found = {}
    for variant in chosen:
        plain = recipe(setting, variant)
        spec = plain.backbone.model_copy(update={"attention": attention_of(variant)})
        measured = plain.model_copy(update={"backbone": spec})
        estimate = estimate_memory(measured, setting.config, batch, kind, CUDA_BASE)
        found[variant.name] = {"total": estimate.total - CUDA_BASE, **estimate.components}
    return found


def of_trl(setting: Setting, bases: Bases, liger: bool = False) -> Figures:
    """Return tokens per second and memory of TRL's SFTTrainer with its own settings.

    Packing, bfloat16 and rank are ours; all else, gradient checkpointing among it, is its default.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    base = bases.get("none")
    base.set_attn_implementation(attention_of(Variant("trl", attention=_for_trl())))
    tokens = lists(setting, setting.steps)
    clock = _clock()
    trainer = SFTTrainer(
        model=base,
        args=SFTConfig(
            output_dir=str(setting.folder / "trl"),
            packing=True,
            max_length=setting.length,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=setting.packs,
            use_liger_kernel=liger,
            bf16=True,
            use_cpu=device().type == "cpu",
            num_train_epochs=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"input_ids": tokens}),
        processing_class=setting.tokenizer,
        peft_config=LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[clock],
    )
    packs = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        trainer.train()
    finally:
        trainer.model.unload()
        restore(base)
    times = clock.times
    if len(times) < 2:
        raise Unavailable(f"TRL made {len(packs)} packs, too few for two steps")
    counted = sum(packs) * (len(times) - 1) / len(times)
    return {
        "tokens_per_second": counted / (times[-1] - times[0]),
        "packs": len(packs),
        "gradient_checkpointing": trainer.args.gradient_checkpointing,
        "attention": base.config._attn_implementation,
        **_memory(),
    }


def _for_trl() -> str:
    from transformers.utils import is_flash_attn_2_available

    on_gpu = device().type == "cuda" and is_flash_attn_2_available()
    return "flash_attention_2" if on_gpu else "sdpa"


def _clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize()
            self.times.append(time.monotonic())

    return Clock()
