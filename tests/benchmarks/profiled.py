"""Where the time of a training goes, ours and the peer's: shares of the operators' own time.

    python -m tests.benchmarks.profiled [--quick] [--rows N] [--side NAME]

The sides are `ours`, `ours_dense`, `trl` and `trl_float32`. The setting is that of
`tests.benchmarks.training`, under torch's profiler, whose own work makes a step about a tenth
slower.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter

from torch.profiler import ProfilerActivity, profile

from lora_kit.runtime.machine import machine, versions
from tests.benchmarks.training import MEASURED

# The first family whose pattern is found in an operator's name has it.
FAMILIES = {
    "4-bit weights": r"bitsandbytes|4bit|[Bb]lockwise",
    "attention": r"scaled_dot_product|flash|fmha|varlen",
    "matrix products": (
        r"aten::(mm|addmm|bmm|baddbmm|mkldnn_linear)|mkldnn::|onednn::|gemm|nvjet|cutlass|xmma"
    ),
    "loss": r"log_softmax|logsumexp|nll_loss|cross_entropy|_ChunkedNll|argmax|aten::_softmax",
    "optimizer": r"adam|foreach|lerp|addcdiv|addcmul|Optimizer",
    "copies and casts": r"copy_|aten::(cat|clone|fill_|zero_|sum)|index|gather",
    "norms, activations, sums": (
        r"aten::(mul|add|sub|div|silu|pow|mean|rsqrt|neg|sigmoid|exp|where)"
    ),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a third of the rows")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--side", choices=tuple(MEASURED), default="ours")
    arguments = parser.parse_args()
    rows = arguments.rows // 3 if arguments.quick else arguments.rows
    watched = profile(activities=[ProfilerActivity.CPU])
    figures = MEASURED[arguments.side](rows, 0, watched=watched)
    spent: Counter[str] = Counter()
    for event in watched.key_averages():
        spent[family(event.key)] += event.self_cpu_time_total
    total = sum(spent.values())
    for name, microseconds in spent.most_common():
        print(f"{name:28}{microseconds / 1e6:8.1f} s{microseconds / total:8.1%}")
    print(
        json.dumps(
            {
                "side": arguments.side,
                "tokens_per_second": figures["tokens_per_second"],
                "shares": {name: round(us / total, 4) for name, us in spent.items()},
                "machine": machine(),
                "versions": versions(),
            }
        )
    )


def family(operator: str) -> str:
    """Return the family of an operator or kernel by its name."""
    found = (family for family, pattern in FAMILIES.items() if re.search(pattern, operator))
    return next(found, "all else")


if __name__ == "__main__":
    main()
