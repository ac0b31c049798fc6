"""Full copies of a model on every process are refused when sharding was requested."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.launch import Launch, require_sharded

FSDP = Launch(asked=2, fsdp=True, fsdp_version=2, processes=2, kind="FSDP")
ZERO_3 = Launch(asked=2, deepspeed=True, zero_stage=3, processes=2, kind="DEEPSPEED")


def model() -> torch.nn.Sequential:
    return torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))


def refused(launch: Launch, wrapped: torch.nn.Module) -> str:
    with pytest.raises(TrainingError) as caught:
        require_sharded(launch, wrapped)
    return str(caught.value)


@pytest.mark.parametrize(
    "launch", [Launch(), Launch(asked=8, processes=8), Launch(deepspeed=True, zero_stage=2)]
)
def test_a_whole_model_is_right_where_nothing_divides_the_weights(launch: Launch) -> None:
    require_sharded(launch, model())


def test_a_whole_model_under_fsdp_is_refused_with_the_lines_that_shard_it() -> None:
    message = refused(FSDP, model())
    assert "0% of the weights" in message
    assert "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP" in message


def test_zero_3_takes_parameters_that_deepspeed_manages() -> None:
    wrapped = model()
    assert "zero_stage: 3" in refused(ZERO_3, wrapped)
    for number, parameter in enumerate(wrapped.parameters()):
        parameter.ds_id = number  # type: ignore[attr-defined]
    require_sharded(ZERO_3, wrapped)


def in_a_group(rank: int, processes: int, meeting: str, answers: Any) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes
    )
    mesh = init_device_mesh("cpu", (processes,))
    part, whole = model(), model()
    fully_shard(part[0], mesh=mesh)
    for layer in whole:
        fully_shard(layer, mesh=mesh)
    fully_shard(whole, mesh=mesh)
    require_sharded(FSDP, whole)
    try:
        require_sharded(FSDP, part)
    except TrainingError as error:
        answers[rank] = str(error)
    answers[f"{rank} in 4 bits"] = bytes_kept(mesh)
    dist.destroy_process_group()


def bytes_kept(mesh: Any) -> bool:
    """Return true if a CPU gathers 4-bit weights bitwise, including NaN bit patterns."""
    from bitsandbytes.nn import Linear4bit
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    torch.manual_seed(0)
    plain = torch.nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)
    layer = Linear4bit(256, 256, bias=False, quant_type="nf4", quant_storage=torch.bfloat16)
    layer.load_state_dict(plain.state_dict())
    layer.to("cpu")
    packed = layer.weight.data.clone()
    assert packed.isnan().any(), "otherwise there is nothing to lose"
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    fully_shard(layer, mesh=mesh, mp_policy=policy).unshard()
    return torch.equal(layer.weight.data.view(torch.uint8), packed.view(torch.uint8))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_fully_shard_made_passes_and_a_quarter_of_it_does_not(
    processes: int, tmp_path: Path
) -> None:
    with mp.get_context("spawn").Manager() as manager:
        answers = manager.dict()
        mp.spawn(in_a_group, (processes, str(tmp_path / "meeting"), answers), processes)
        for rank in range(processes):
            assert "25% of the weights are in shards" in answers[rank]
            # A GPU may change them, see `training.sharded_4bit`.
            assert answers[f"{rank} in 4 bits"]
