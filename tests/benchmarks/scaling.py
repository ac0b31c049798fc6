"""Training in one process and in two, with equal hardware for each, and what communication costs.

    python -m tests.benchmarks.scaling [--quick] [--rows N] [--rounds N]

SmolLM2-135M in nf4, LoRA r16 on all linear layers, batches of 8 examples of the quickstart's data.
Each process is pinned to a core of its own and has one thread. `alone`: one process, the other core
idle. `side by side`: two such trainings that know nothing of each other, which share the memory's
bandwidth and the caches. `together`: one training by two processes. The efficiency is the rate of
`together` over twice that of `alone`; over both of `side by side`, it is what working together
costs beyond the hardware that is shared. The gradient's all-reduce is also measured by itself.

The second table is on paper: 8 and 64 GPUs by the sizes in `Cluster` and `Work` below.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from lora_kit.runtime.machine import machine, versions

# Without replay, whose rows would leave the last step with a few that cannot be shared.
SETTING = (
    "training.eval_steps=1000",
    "training.save_steps=1000",
    "data.replay=null",
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="two steps, one of them measured")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--pinned", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.add_argument("--reduce", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.rounds = 16, 1
    if arguments.pinned:
        _pinned(arguments.pinned)
    elif arguments.reduce:
        _reduce(arguments.reduce)
    else:
        _print(*_measured(arguments.rows, arguments.rounds))


def _measured(rows: int, rounds: int) -> tuple[dict[str, list[float]], float, int]:
    """Token/s of each way, seconds of an all-reduce, and bytes of the gradient."""
    found: dict[str, list[float]] = {"alone": [], "side by side": [], "together": []}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for number in range(rounds):
            (rate,) = _rates([_training(rows, place / f"alone-{number}", core=0)])
            found["alone"].append(rate)
            apart = [_training(rows, place / f"{core}-{number}", core=core) for core in (0, 1)]
            found["side by side"].append(sum(_rates(apart)))
            (rate,) = _rates([_training(rows, place / f"both-{number}", processes=2)])
            found["together"].append(rate)
        record = json.loads((place / "alone-0" / "run.json").read_text())
    size = 4 * record["coverage"]["trainable_parameters"]
    return found, _seconds_of_reduce(size), size


def _launched(processes: int, *arguments: str) -> list[str]:
    module = ["-m", __spec__.name, *arguments]
    if processes == 1:
        return [sys.executable, *module]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc-per-node", str(processes), *module]


def _training(
    rows: int, output: Path, core: int = 0, processes: int = 1
) -> tuple[subprocess.Popen[bytes], Path]:
    options = [part for field in SETTING for part in ("--set", field)]
    recipe = ["train", "quickstart", "--set", f"data.train.0.limit={rows}", *options]
    command = _launched(processes, "--pinned", *recipe, "--output", str(output))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FIRST_CORE": str(core)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL), output


def _rates(started: list[tuple[subprocess.Popen[bytes], Path]]) -> list[float]:
    """Tokens a second after the first step, which has what is made but once."""
    found = []
    for process, _ in started:
        if process.wait():
            raise SystemExit(f"a training ended with status {process.returncode}")
    for _, run in started:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "tokens" in line]
        first, last = steps[0], steps[-1]
        found.append((last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"]))
    return found


def _pinned(arguments: list[str]) -> None:
    """lora-kit on one core."""
    core = int(os.environ["FIRST_CORE"]) + int(os.environ.get("LOCAL_RANK", "0"))
    os.sched_setaffinity(0, {core})
    from lora_kit.cli import main as command

    command(arguments)


def _seconds_of_reduce(size: int) -> float:
    command = _launched(2, "--reduce", str(size))
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def _reduce(size: int) -> None:
    """Median seconds in which two processes add up as many bytes."""
    import torch
    import torch.distributed as dist

    os.sched_setaffinity(0, {int(os.environ["LOCAL_RANK"])})
    dist.init_process_group("gloo")
    tensor, taken = torch.zeros(size // 4), []
    for _ in range(12):
        dist.barrier()
        started = time.monotonic()
        dist.all_reduce(tensor)
        taken.append(time.monotonic() - started)
    if dist.get_rank() == 0:
        print(statistics.median(taken[2:]))
    dist.destroy_process_group()


@dataclass(frozen=True)
class Cluster:
    """Assumed hardware: H100 nodes of 8 with NVLink, 400 Gbit/s for each GPU.

    Attributes:
        flops: rate that matrix products reach, a second: 40% of 989 TFLOP/s in bfloat16.
        in_node: bytes a second that a GPU sends within its node, of NVLink's 450 GB/s.
        between_nodes: bytes a second, 80% of 400 Gbit/s.
        latency: seconds of each of the ring's hops.
    """

    flops: float = 0.4 * 989e12
    in_node: float = 300e9
    between_nodes: float = 40e9
    latency: float = 15e-6


@dataclass(frozen=True)
class Work:
    """Assumed training: LoRA r16 on all linear layers of an 8B model.

    Attributes:
        parameters: number of frozen parameters.
        trained: number of parameters whose float32 gradients are added up.
        tokens: tokens of a step on each GPU.
        passes: forward passes of a step on each GPU, for each of which FSDP gathers the weights.
    """

    parameters: float = 8.0e9
    trained: float = 42e6
    tokens: int = 16_384
    passes: int = 2


def ring(size: float, gpus: int, cluster: Cluster) -> float:
    """Seconds of a ring's all-gather or reduce-scatter (Patarasuk & Yuan 2009, J. Parallel Distrib.
    Comput. 69:117); an all-reduce is one of each. The slowest link sets the pace.
    """
    speed = cluster.in_node if gpus <= 8 else cluster.between_nodes
    return (gpus - 1) / gpus * size / speed + (gpus - 1) * cluster.latency


def on_paper(gpus: int, sharded: bool, cluster: Cluster, work: Work) -> float:
    """Share of a step's time that is computation, nothing of the communication hidden behind it.

    Forward 2 and backward 2 operations a weight and token (the frozen weights have no gradient),
    and 2 more to recompute.
    """
    computing = 6 * work.parameters * work.tokens / cluster.flops
    talking = 2 * ring(4 * work.trained, gpus, cluster)
    if sharded:
        # bfloat16 weights, gathered for the forward and for the backward pass.
        talking += work.passes * 2 * ring(2 * work.parameters, gpus, cluster)
    return computing / (computing + talking)


def _print(found: dict[str, list[float]], reduce: float, size: int) -> None:
    rates = {name: statistics.median(of_name) for name, of_name in found.items()}
    for name, rate in rates.items():
        print(f"{name:14}{rate:10.1f} token/s")
    together = rates["together"]
    figures = {
        "efficiency": round(together / (2 * rates["alone"]), 3),
        "over_side_by_side": round(together / rates["side by side"], 3),
        "all_reduce_seconds": round(reduce, 4),
        "gradient_megabytes": round(size / 1e6, 1),
    }
    cluster, work = Cluster(), Work()
    print(f"{'on paper':14}{'8 GPUs':>10}{'64 GPUs':>10}")
    paper = {}
    for name, sharded in (("DDP", False), ("FSDP2", True)):
        paper[name] = [round(on_paper(gpus, sharded, cluster, work), 3) for gpus in (8, 64)]
        print(f"{name:14}{paper[name][0]:>10.1%}{paper[name][1]:>10.1%}")
    print(
        json.dumps(
            {**figures, "rates": rates, "on_paper": paper, "machine": machine(),
             "versions": versions()}
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
