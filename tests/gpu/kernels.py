"""Where the time of a training step goes: the kernels of the fastest variant."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.profiled import family
from tests.gpu.material import Setting, device
from tests.gpu.runner import Case, Figures, Record, write_json
from tests.gpu.speed import Bases, adapted, recipe, train
from tests.gpu.variants import VARIANTS, Variant

NUMBER = 30
STEPS = 2


def cases(
    setting: Setting, bases: Bases, records: Sequence[Record], output: Path
) -> Sequence[Case]:
    """Return the profile of the fastest variant on bfloat16 weights, and of the one on nf4."""
    names = ("none",) if setting.is_tiny else ("none", "nf4")
    return [
        Case(
            f"profile-{quantization}",
            partial(profiled, setting, bases, records, quantization, output),
            () if quantization == "none" else ("bitsandbytes",),
        )
        for quantization in names
    ]


def profiled(
    setting: Setting, bases: Bases, records: Sequence[Record], quantization: str, output: Path
) -> Figures:
    """Write the kernels with the most time, and return the shares of their families."""
    variant = fastest(records, quantization)
    chosen = recipe(setting, variant)
    activities = [ProfilerActivity.CPU]
    if device().type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with adapted(setting, bases, variant, chosen) as (backbone, model):
        if device().type == "cuda":
            train(setting, chosen, backbone, model, STEPS)
        started = time.perf_counter()
        with profile(activities=activities) as watched:
            train(setting, chosen, backbone, model, STEPS)
        seconds = time.perf_counter() - started
    events = watched.key_averages()
    on_gpu = device().type == "cuda"
    spent = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3
        for event in events
    }
    calls = {event.key: event.count for event in events}
    total = sum(spent.values())
    longest = sorted(spent, key=spent.__getitem__, reverse=True)[:NUMBER]
    kernels = [
        {
            "kernel": key[:160],
            "calls": calls[key],
            "milliseconds": spent[key],
            "share": spent[key] / total,
        }
        for key in longest
    ]
    write_json(output / f"profile-{quantization}.json", {"variant": variant.name, "top": kernels})
    families: Counter[str] = Counter()
    for key, milliseconds in spent.items():
        families[family(key)] += milliseconds
    return {
        "variant": variant.name,
        "milliseconds": total,
        "seconds_with_saving": seconds,
        "families": {name: value / total for name, value in families.most_common()},
        "first": kernels[0],
    }


def fastest(records: Sequence[Record], quantization: str) -> Variant:
    """Return the fastest variant that was measured; the first one if none was."""
    known = {variant.name: variant for variant in VARIANTS}
    measured = {
        record.case: record.figures["tokens_per_second"]
        for record in records
        if record.step == "speed"
        and record.case in known
        and known[record.case].quantization == quantization
        and "tokens_per_second" in record.figures
    }
    if measured:
        return known[max(measured, key=measured.__getitem__)]
    return next(one for one in VARIANTS if one.quantization == quantization)
