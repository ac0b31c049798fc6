"""Time of a training pass on a GPU that is not here, bounded by its bandwidth and its peak.

    python -m tests.benchmarks.roofline [--quick]

The package's own pass (packing, loss, LoRA r16) runs on a fake GPU (`tests.standins.fake_cuda`) at
the shape of Llama 3 8B, forward and backward over 4,096 packed tokens. A kernel takes the longer of
its bytes over the bandwidth and its operations over the peak. It is a computed bound, not a
measurement: launches, gaps between kernels, the optimizer and the loader are not in it. It takes
half a minute with or without `--quick`, and needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import sdpa_mask

from lora_kit.adapter.attach import wrap_with_adapter
from lora_kit.backbone.varlen import VARLEN, register_varlen
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.modeling.likelihood import GPU_CHUNK, logits_at, token_nll
from lora_kit.modeling.model_inputs import pack_examples, supervised_positions, to_device
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.runtime.machine import machine, versions
from tests.standins.fake_cuda import (
    CUDA,
    FakeCudaMode,
    Watch,
    build,
    compiler,
    environment,
    is_cuda,
    show,
    to_fake_cuda,
)

LAYERS, RANK, TOKENS, DOCUMENTS = 32, 16, 4096, 4
# NVIDIA's data sheet of the H100 SXM: 3.35 TB/s and 989 TFLOP/s in bfloat16, dense. Assumed: copies
# reach 84% of the first, large matrix products 66% of the second.
BANDWIDTH, PEAK = 2.8e12, 650e12
# FlashAttention-2 reaches 35% of an H100's peak (Shah et al. 2024, arXiv:2407.08608, section 1).
FLASH_RATE = 350e12
# Assumed for the memory-efficient kernel, which sdpa takes with a mask; it computes all pairs.
MASKED_RATE = 150e12
# Token/s of LoRA on an 8B and an H100, packed to 4,096, as published; see
# lora_kit/preflight/gpu_time.py.
PUBLISHED = 12_500
INSIDE = "LORA_KIT_ON_FAKE_CUDA"
MASKED = "roofline_masked"
ALLOCATIONS = (
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "detach",
    "alias",
    "_unsafe_view",
)
COPIES = ("_to_copy", "copy_", "clone", "cat", "_pin_memory", "index", "slice_backward")


@dataclass(frozen=True)
class Setting:
    """Column of the table.

    Attributes:
        name: name in the table.
        attention: `MASKED` or `VARLEN`.
        recomputed: true with gradient checkpointing.
        cast: true if PEFT casts the inputs of LoRA to float32.
        chunk: tokens whose logits are converted to float32 at a time.
    """

    name: str
    attention: str
    recomputed: bool
    cast: bool
    chunk: int = GPU_CHUNK


# `packed` is a pass of the package as it is, with checkpointing; `best` is its default.
SETTINGS = {
    "before": Setting("sdpa with a mask, checkpointing, casts", MASKED, True, True, 64),
    "varlen": Setting("varlen attention, checkpointing, casts", VARLEN, True, True),
    "packed": Setting("varlen attention, checkpointing", VARLEN, True, False),
    "best": Setting("varlen attention", VARLEN, False, False),
}


@dataclass
class Spent:
    """Kernels of a pass by kind.

    Attributes:
        seconds: time at the roofline.
        kernels: number of kernels.
    """

    seconds: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)

    def extrapolated(self, two: Spent, layers: int) -> Spent:
        """Return the pass of a model with more layers, from those of one and of two."""
        made = Spent()
        for name in {*self.seconds, *two.seconds}:
            per_layer = two.seconds[name] - self.seconds[name]
            made.seconds[name] = self.seconds[name] + (layers - 1) * per_layer
            more = two.kernels[name] - self.kernels[name]
            made.kernels[name] = self.kernels[name] + (layers - 1) * more
        return made


class Roofline(Watch):
    """Add up the time of each kernel.

    Attributes:
        spent: time and number of kernels by kind.
        in_loss: true while the loss of the logits is computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spent = Spent()
        self.in_loss = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        name = func.overloadpacket.__name__
        outputs = [leaf for leaf in tree_leaves(result) if is_cuda(leaf)]
        if func.is_view or not outputs or name in ALLOCATIONS:
            return result
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if is_cuda(leaf)]
        kind = "loss" if self.in_loss else _kind(name, inputs)
        seconds = _attention_seconds(name, inputs)
        if seconds is None:
            size = sum(one.numel() * one.element_size() for one in (*inputs, *outputs))
            seconds = max(size / BANDWIDTH, _flop(name, inputs) / PEAK)
        self.spent.seconds[kind] += seconds
        self.spent.kernels[kind] += 1
        return result


def _kind(name: str, inputs: list[torch.Tensor]) -> str:
    if "attention" in name or "varlen_attn" in name:
        return "attention"
    if name in ("mm", "addmm", "bmm", "baddbmm"):
        is_lora = any(RANK in one.shape for one in inputs)
        return "matrix products of LoRA" if is_lora else "matrix products of frozen weights"
    return "casts and copies" if name in COPIES else "norms, activations, sums"


def _flop(name: str, inputs: list[torch.Tensor]) -> int:
    if name not in ("mm", "addmm", "bmm", "baddbmm"):
        return 0
    left, right = inputs[-2:]
    return 2 * left.numel() * right.shape[-1]


def _attention_seconds(name: str, inputs: list[torch.Tensor]) -> float | None:
    """Return the time of an attention kernel; `None` for other kernels.

    Four operations for a pair of tokens and a number of a head; backward 2.5 times as many
    (Dao 2023, arXiv:2307.08691, section 4.1). Causal attention within a document has half of the
    pairs.
    """
    is_flash = "varlen_attn" in name
    if not is_flash and "efficient_attention" not in name:
        return None
    is_backward = "backward" in name
    query = inputs[1] if is_backward else inputs[0]
    heads_times_size = query.numel() / TOKENS
    pairs = TOKENS**2 / (2 * DOCUMENTS) if is_flash else TOKENS**2
    flop = 4 * pairs * heads_times_size * (2.5 if is_backward else 1)
    return flop / (FLASH_RATE if is_flash else MASKED_RATE)


def _masked(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute as sdpa does with a mask: repeated key heads, and the kernel that takes a bias."""
    groups = module.num_key_value_groups
    key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    bias = torch.where(attention_mask, 0.0, -torch.inf).to(query.dtype)
    output = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias.expand(-1, query.shape[1], -1, -1), True
    )[0]
    return output.transpose(1, 2).contiguous(), None


def computed(setting: Setting, layers: int) -> Spent:
    """Return the kernels of a training pass of a model with some layers."""
    mode = FakeCudaMode()
    model = _model(setting, layers)
    to_fake_cuda(model, mode)
    watch = Roofline()
    with mode, watch:
        batch = to_device(_pack(), CUDA)
        with torch.autocast("cuda", torch.bfloat16):
            targets, rows, columns = supervised_positions(batch)
            logits = logits_at(model, batch, rows, columns)
            watch.in_loss = True
            loss = token_nll(logits, targets, setting.chunk).sum()
            watch.in_loss = False
        loss.backward()  # type: ignore[no-untyped-call]
    return watch.spent


def _model(setting: Setting, layers: int) -> Any:
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
        attn_implementation=setting.attention,
    )
    with torch.device("meta"):
        base = LlamaForCausalLM(config).to(torch.bfloat16).requires_grad_(False)
        model = wrap_with_adapter(base, AdapterSpec(rank=RANK))
    for module in model.modules():
        if setting.cast and isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = True
    if setting.recomputed:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def _pack() -> dict[str, Any]:
    """Return documents of equal length in one row, each token but the first supervised."""
    length = TOKENS // DOCUMENTS
    document = Example((5,) * length, (IGNORE_INDEX,) + (7,) * (length - 1))
    return pack_examples([document] * DOCUMENTS)


def _print(spent: dict[str, Spent], host: dict[str, Any]) -> None:
    kinds = sorted({kind for one in spent.values() for kind in one.seconds})
    print(f"{'milliseconds':36}" + "".join(f"{name:>10}" for name in spent))
    for kind in kinds:
        times = "".join(f"{one.seconds[kind] * 1e3:10.1f}" for one in spent.values())
        print(f"{kind:36}{times}")
    totals = {name: one.seconds.total() for name, one in spent.items()}
    print(f"{'pass of 4,096 tokens':36}" + "".join(f"{s * 1e3:10.1f}" for s in totals.values()))
    print(f"{'kernels':36}" + "".join(f"{one.kernels.total():10}" for one in spent.values()))
    print(
        f"{'token/s at the roofline':36}" + "".join(f"{TOKENS / s:10.0f}" for s in totals.values())
    )
    print(f"published for an H100: {PUBLISHED} token/s")
    for name, setting in SETTINGS.items():
        print(f"{name}: {setting.name}")
    print(
        json.dumps(
            {f"tokens_per_second_{name}": round(TOKENS / s, 1) for name, s in totals.items()}
            | {
                "tokens_per_second_published": PUBLISHED,
                "milliseconds": {
                    name: {kind: round(s * 1e3, 2) for kind, s in one.seconds.items()}
                    for name, one in spent.items()
                },
                "kernels": {name: one.kernels.total() for name, one in spent.items()},
                "machine": host,
                "versions": versions(),
            }
        )
    )


def main() -> None:
    """Compute and print, in a process with the fake GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="the same: it takes half a minute")
    parser.parse_args()
    if compiler() is None:
        parser.error("needs a C++ compiler (got none). Fix: install g++")
    if INSIDE not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            inside = environment(build(Path(folder))) | {INSIDE: "1"}
            command = [sys.executable, "-m", __spec__.name]
            sys.exit(subprocess.run(command, env=inside).returncode)
    host = machine()
    show()
    # Without a kernel for CUDA, torch would compose it of seven.
    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("silu_backward", torch.ops.aten.silu_backward.default, "CUDA")
    register_varlen()
    AttentionInterface.register(MASKED, _masked)
    AttentionMaskInterface.register(MASKED, sdpa_mask)
    _print(
        {
            name: computed(setting, 1).extrapolated(computed(setting, 2), LAYERS)
            for name, setting in SETTINGS.items()
        },
        host,
    )


if __name__ == "__main__":
    main()
