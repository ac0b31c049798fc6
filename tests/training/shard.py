"""Script for several processes: train a model sharded by `fully_shard` and save it.

torchrun --nproc-per-node N -m tests.training.shard OUTPUT [CHECKPOINT]
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from lora_kit.training import checkpoints
from lora_kit.training.callbacks import gradient_norm
from lora_kit.training.sharded import is_sharded, reshard

STEPS = 3


def model_of() -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    # Frozen weights in bfloat16, trained ones in float32, like a backbone with its adapter.
    model[0].to(torch.bfloat16).requires_grad_(False)
    return model


def forward(model: torch.nn.Module, examples: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        output: torch.Tensor = model(examples).float().square().mean()
    return output


def validate(model: torch.nn.Module) -> None:
    """Run a forward pass before training, as a validation does."""
    with torch.no_grad():
        forward(model, torch.ones(2, 6))
    reshard(model)
    assert all(p.dtype is torch.float32 for p in model.parameters() if p.requires_grad)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> float:
    """Take a step on the same examples in each process; return the gradient norm."""
    torch.manual_seed(seed)
    forward(model, torch.randn(4, 6)).backward()
    norm = gradient_norm(model)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def trainer_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """Return those attributes of a trainer that a checkpoint uses."""
    return SimpleNamespace(
        model=model,
        optimizer=optimizer,
        accelerator=SimpleNamespace(scaler=None, wait_for_everyone=lambda: None),
        lr_scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
        state=SimpleNamespace(
            global_step=STEPS, save_to_json=lambda path: Path(path).write_text("{}")
        ),
        args=SimpleNamespace(output_dir="", process_index=0),
        is_world_process_zero=lambda: not dist.is_initialized() or dist.get_rank() == 0,
        validation=None,
        early_stopping=None,
        length_group_size=4,
        tokens=0,
        ended=False,
    )


def train(output: Path, checkpoint: Path | None = None, divided: bool = False) -> list[float]:
    """Train from a checkpoint, if given, save one, and return the gradient norms."""
    model = model_of()
    if divided:
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        model = cast("torch.nn.Module", fully_shard(model, mp_policy=policy))
        assert is_sharded(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    trainer = trainer_of(model, optimizer)
    trainer.args.output_dir = output
    if checkpoint:
        checkpoints.load_weights(model, checkpoint)
        checkpoints.load_optimizer(trainer, checkpoint)
    validate(model)
    norms = [step(model, optimizer, seed) for seed in range(STEPS)]
    validate(model)
    checkpoints.save(trainer, keep=1)
    return norms


def main(*several: str) -> None:
    is_main = Accelerator(cpu=True).is_main_process
    for one in several:
        output, _, checkpoint = one.partition("=")
        norms = train(Path(output), Path(checkpoint) if checkpoint else None, divided=True)
        if is_main:
            print("norms", *norms)


if __name__ == "__main__":
    main(*sys.argv[1:])
