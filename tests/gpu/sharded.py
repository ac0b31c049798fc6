"""The package's sharding of 4-bit weights by FSDP 2, in one process of NCCL (gloo on a CPU)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from lora_kit.modeling.checkpointing import enable_checkpointing
from tests.gpu.material import SHAPES, SMALL, Setting, configuration, device, random_model
from tests.gpu.runner import Case, Figures, Unavailable

STEPS = 3
NEEDS = ("bitsandbytes", "peft", "pydantic", "datasets")


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
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    from lora_kit.backbone.mapped_4bit import quantize_mapped
    from lora_kit.runtime.errors import BackboneError
    from lora_kit.training.sharded_4bit import shard_4bit_layers

    with _one_process():
        reference = _adapted(setting, checkpointing)
        quantize_mapped(reference, device())
        packed = {n: p.data.clone() for n, p in reference.named_parameters() if _is_packed(p)}
        losses = _losses(reference)
        model = _adapted(setting, checkpointing)
        launch = _launch()
        try:
            shard_4bit_layers(model, launch)
        except BackboneError as error:
            if "this version of torch" not in str(error):
                raise
            raise Unavailable(str(error)) from error
        # Accelerate would do so for what is left: embeddings, norms and the output head.
        fully_shard(model, mp_policy=launch.state.fsdp_plugin.mixed_precision_policy)
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


def _launch() -> Any:
    """Return the settings of a launch file of FSDP 2, as Accelerate hands them over."""
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        mixed_precision_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32),
    )
    return SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), device=device())


def _adapted(setting: Setting, checkpointing: bool) -> Any:
    """Return a LoRA model whose 4-bit layers are not quantized yet."""
    from peft import LoraConfig, get_peft_model

    from lora_kit.backbone.load import guard_quantized_modules, quantization_config
    from lora_kit.backbone.mapped_4bit import map_linear_layers
    from lora_kit.recipe.backbone import BackboneSpec

    shape = SHAPES["tiny"] if setting.is_tiny else {**SMALL, "vocab_size": 4096}
    model = random_model(configuration(shape), "none")
    spec = BackboneSpec(model="random", quantization="nf4")
    map_linear_layers(model, quantization_config(spec, torch.bfloat16))
    list(guard_quantized_modules(model))
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
