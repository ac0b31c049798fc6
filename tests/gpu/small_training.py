"""A small model through the whole package: training, resuming, evaluation, merging."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.gpu.material import Setting, device
from tests.gpu.runner import Case, Figures

NEEDS = ("pydantic", "peft", "trl", "datasets", "evaluate", "gguf")
SUITE = """
name: first-look
role: retention
tasks:
  - {name: prose, kind: loss, source: python-reference, limit: 6, max_length: 96, margin: 0.5}
  - {name: quiz, kind: multiple_choice, source: general-knowledge, limit: 6, margin: 0.5}
  - {name: asked, kind: instructions, source: instructions, limit: 4, margin: 0.5}
"""
# On a CPU that shows that the cases work.
FEW = ("bf16-packing", "nf4-checkpointing")


@dataclass(frozen=True)
class Weights:
    """Storage and dtype of a backbone's weights."""

    name: str
    quantization: str
    dtype: str

    @property
    def needs(self) -> tuple[str, ...]:
        """Modules that the weights need."""
        return () if self.quantization == "none" else ("bitsandbytes",)


WEIGHTS = (
    Weights("bf16", "none", "bfloat16"),
    Weights("nf4", "nf4", "bfloat16"),
    Weights("int8", "int8", "bfloat16"),
    Weights("fp16", "none", "float16"),
)


def cases(setting: Setting) -> Sequence[Case]:
    """Return the cases; trainings of all weights come first, so that what they need is there."""
    found = []
    for checkpointing, packing in itertools.product((False, True), repeat=2):
        for weights in WEIGHTS:
            if setting.is_tiny and (
                weights.name not in ("bf16", "nf4") or checkpointing is packing
            ):
                continue
            parts = (weights.name, *["checkpointing"] * checkpointing, *["packing"] * packing)
            name = "-".join(parts)
            if setting.is_tiny and name not in FEW:
                continue
            run = _trained(setting, weights, name, checkpointing, packing)
            found.append(Case(name, run, weights.needs))
    return [
        *found,
        Case("resume", lambda: resumed(setting)),
        Case("evaluate", lambda: evaluated(setting), ("bitsandbytes",)),
        Case("merge", lambda: merged(setting), ("bitsandbytes",)),
    ]


def recipe(
    setting: Setting, weights: Weights, checkpointing: bool, packing: bool, **training: Any
) -> Any:
    """Return a recipe that trains on the chats."""
    from lora_kit.recipe.recipe import Recipe

    return Recipe.model_validate(
        {
            "name": "first-look",
            "backbone": {
                "model": str(setting.small),
                "quantization": weights.quantization,
                "dtype": weights.dtype,
            },
            "adapter": {"rank": 8, "alpha": 16},
            "data": {
                "train": [{"source": str(setting.rows), "limit": 24 if setting.is_tiny else 64}],
                "max_length": 128,
                "packing": packing,
                "audit": {"duplicates": 1.0},
            },
            "training": {
                "batch_size": 8,
                "learning_rate": 1e-3,
                "gradient_checkpointing": checkpointing,
                **training,
            },
            # Every training reads the items, to keep them out of its rows.
            "evaluation": {"suites": [str(_suite(setting))]},
        }
    )


def _suite(setting: Setting) -> Path:
    path = setting.folder / "first-look.yaml"
    path.write_text(SUITE)
    return path


def _run(setting: Setting, name: str) -> Path:
    return setting.folder / "runs" / name


def _trained(
    setting: Setting, weights: Weights, name: str, checkpointing: bool, packing: bool
) -> Any:
    def run() -> Figures:
        from lora_kit.pipeline.training import train

        chosen = recipe(setting, weights, checkpointing, packing)
        trained = train(chosen, _run(setting, name), overwrite=True)
        allocated = torch.cuda.max_memory_allocated() if device().type == "cuda" else None
        result = trained.result
        if not math.isfinite(result.final_loss):
            raise ValueError(f"the loss is not finite (got {result.final_loss})")
        return {
            "first_loss": result.first_loss,
            "final_loss": result.final_loss,
            "steps": result.steps,
            "tokens_per_second": result.tokens_per_second,
            "peak_memory": result.peak_memory,
            "allocated": allocated,
            **(_planned(setting, chosen, trained.data) if device().type == "cuda" else {}),
        }

    return run


def _planned(setting: Setting, chosen: Any, data: Any) -> Figures:
    """Return the memory that `plan` estimates, without what libraries hold, in bytes."""
    from transformers import AutoConfig

    from lora_kit.backbone.attention import expected_attention
    from lora_kit.preflight.memory import CUDA_BASE, estimate_memory
    from lora_kit.preflight.micro_batch import largest_micro_batch
    from lora_kit.training.micro_batcher import MicroBatcher

    if data is None:
        return {}
    config = AutoConfig.from_pretrained(setting.small)
    kind: Any = "cuda" if device().type == "cuda" else "cpu"
    attention = expected_attention(chosen.backbone, config, kind)
    chosen = chosen.model_copy(
        update={"backbone": chosen.backbone.model_copy(update={"attention": attention})}
    )
    batcher = MicroBatcher.of(chosen, 1, device(), attention)
    batch = largest_micro_batch(data.prepared, batcher)
    estimate = estimate_memory(chosen, config, batch, kind, CUDA_BASE)
    return {"planned": estimate.total - CUDA_BASE}


def _weights_sha256(run: Path) -> str:
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def resumed(setting: Setting) -> Figures:
    """Compare a training that a signal interrupts with one that runs through, bit for bit."""
    import pytest

    from lora_kit.pipeline.training import train
    from lora_kit.runtime.errors import TrainingInterruptedError
    from tests.training.cut import during

    # That of the training which comes first, but for the checkpoints.
    chosen = recipe(setting, WEIGHTS[0], False, True, save_steps=1)
    whole, again, cut = (_run(setting, name) for name in (FEW[0], "again", "cut"))
    if not (whole / "adapter").exists():
        train(chosen, whole, overwrite=True)
    if device().type == "cuda":
        # Where kernels add in any order, no training repeats itself.
        train(chosen, again, overwrite=True)
    with pytest.MonkeyPatch.context() as patched:
        during(patched, 1, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        try:
            train(chosen, cut, overwrite=True)
        except TrainingInterruptedError as error:
            said = str(error)
        else:
            raise AssertionError("the signal did not interrupt the training")
    train(chosen, cut, resume=True)
    expected = _weights_sha256(whole)
    return {
        "interrupted": said,
        "repeated_equal": _weights_sha256(again) == expected if again.exists() else None,
        "resumed_equal": _weights_sha256(cut) == expected,
    }


def evaluated(setting: Setting) -> Figures:
    """Return the result of an evaluation of the nf4 run on three kinds of items."""
    from lora_kit.pipeline.evaluation import evaluate

    found = evaluate(_nf4_run(setting), no_cache=True)
    scores: dict[str, list[float]] = {}
    for entry in found.read_entries():
        if entry.score is not None:
            scores.setdefault(f"{entry.arm}/{entry.task}", []).append(entry.score)
    return {
        "decision": str(found.verdict.decision),
        "mean_scores": {name: sum(values) / len(values) for name, values in scores.items()},
        "items": {name: len(values) for name, values in scores.items()},
    }


def merged(setting: Setting) -> Figures:
    """Return the comparisons of merged models, on both bases of the nf4 run."""
    from lora_kit.pipeline.merging import merge

    # Each is loaded and compared in a process of its own, which imports everything.
    bases: Any = "dequantized" if setting.is_tiny else "both"
    found = merge(_nf4_run(setting), setting.folder / "merged", base=bases)
    return {
        one.into: {
            "passed": one.verification.passed,
            "reasons": list(one.verification.reasons),
            "top1_agreement": one.verification.top1_agreement,
            "mean_kl": one.verification.mean_kl,
        }
        for one in found
    }


def _nf4_run(setting: Setting) -> Path:
    runs = sorted((setting.folder / "runs").glob("nf4*/adapter/adapter_model.safetensors"))
    if not runs:
        raise AssertionError("no training of nf4 succeeded")
    return runs[0].parents[1]
