"""FSDP2 over 4-bit weights stored as uint8, in one process of NCCL (gloo on a CPU)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from lora_kit.modeling.checkpointing import enable_checkpointing
from tests.gpu.material import SHAPES, SMALL, Setting, configuration, device, random_model
from tests.gpu.runner import Case, Figures, Unavailable

STEPS = 3
NEEDS = ("bitsandbytes", "peft")


def cases(setting: Setting) -> Sequence[Case]:
    """Return the comparison, without and with gradient checkpointing."""
    return [
        Case("nf4", partial(compared, setting, False)),
        Case("nf4-checkpointing", partial(compared, setting, True)),
    ]


@contextmanager
def _one_process() -> Iterator[None]:
    backend = "nccl" if device().type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def compared(setting: Setting, checkpointing: bool) -> Figures:
    """Train some steps whole and sharded, and compare losses and packed weights."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import DTensor

    with _one_process():
        losses = _losses(_adapted(setting, checkpointing))
        model = _adapted(setting, checkpointing)
        packed = {n: p.data.clone() for n, p in model.named_parameters() if _is_packed(p)}
        mesh = init_device_mesh(device().type, (1,))
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        try:
            for layer in (*model.get_base_model().model.layers, model):
                fully_shard(layer, mesh=mesh, mp_policy=policy)
        except RuntimeError as error:
            if "floating point" not in str(error):
                raise
            raise Unavailable(f"torch {torch.__version__} shards no integer weights") from error
        whole = [n for n, p in model.named_parameters() if not isinstance(p, DTensor)]
        sharded = _losses(model)
        after = {n: p.full_tensor() for n, p in model.named_parameters() if n in packed}
        unchanged = sum(torch.equal(after[n].view(torch.uint8), packed[n]) for n in packed)
    return {
        "losses": losses,
        "sharded_losses": sharded,
        "losses_equal": losses == sharded,
        "unsharded_parameters": len(whole),
        "packed_unchanged": unchanged,
        "packed": len(packed),
    }


def _is_packed(parameter: Any) -> bool:
    return type(parameter).__name__ == "Params4bit"


def _adapted(setting: Setting, checkpointing: bool) -> Any:
    from peft import LoraConfig, get_peft_model

    shape = SHAPES["tiny"] if setting.is_tiny else {**SMALL, "vocab_size": 4096}
    model = random_model(configuration(shape), "nf4")
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(model, LoraConfig(**options))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
    adapted.train()
    if checkpointing:
        enable_checkpointing(adapted, use_reentrant=False)
        adapted.enable_input_require_grads()
    return adapted


def _losses(model: Any) -> list[float]:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(4, 2048, (2, 64), generator=generator).to(device())
    losses = []
    for _ in range(STEPS):
        with torch.autocast(device().type, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses
