"""The first eight minutes on a GPU: everything that only a GPU can tell, in one process.

    python -m tests.gpu.first_look [--output FOLDER] [--seconds N] [--shape 8b|tiny] [--site FOLDER]

Run it in the root of a checkout, which need not be installed. Steps, the most valuable first:
versions and ceilings; a small model through the whole package (bf16, nf4, int8 and fp16 weights,
gradient checkpointing, packing, resuming, evaluation, both merges); bitsandbytes' codes of CPU and
GPU; FSDP2 over 4-bit weights; speed and memory of LoRA at the shape of an 8B model, beside the
plan's estimate and TRL; a profile; scoring and generation; out of memory on purpose; kernels that
change classes. Weights are random and made on the device, the tokenizer is trained here: no hub, no
model files of that size. `--shape tiny`, on any CPU, shows only that the cases work.

Each case is guarded: what it raises is recorded with the end of its traceback, a watchdog gives
each its time and the whole a budget, and `steps.json` is rewritten after each one, so that a look
that is cut off loses nothing. `summary.json` and `summary.txt` hold the outcomes, the figures of
RESULTS.md and of the support matrix, and the goals.

A step whose packages lack is skipped with the reason. `--site` names a folder of packages that are
carried along, built for that machine's Python:

    pip install --no-deps --target FOLDER pydantic pydantic-core annotated-types evaluate gguf \\
        typing-inspection datasets dill multiprocess xxhash peft trl bitsandbytes

Of bitsandbytes' libraries, only the one of that machine's CUDA is needed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.gpu.runner import FAILED, TIMED_OUT, Record, Runner, Step
from tests.gpu.summary import TABLE, write_summary

SECONDS = 460.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Look, write, print the table; return 1 if a case failed or took too long."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", "first_look")))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="budget of all steps")
    parser.add_argument("--shape", choices=("8b", "tiny"), default="8b")
    parser.add_argument("--site", type=Path, help="folder of further packages")
    parser.add_argument("--only", action="append", help="name of a step to run; may be repeated")
    given = parser.parse_args(arguments)
    if given.site:
        _add_packages(given.site.resolve())
    records = look(given.output, given.seconds, given.shape, given.only)
    print((given.output / TABLE).read_text(), end="")
    return int(any(one.outcome in (FAILED, TIMED_OUT) for one in records))


def look(
    output: Path, seconds: float, shape: str, only: Sequence[str] | None = None
) -> Sequence[Record]:
    """Run all steps, or some, and return the records."""
    # A CPU takes as long as it takes.
    patience = 100.0 if shape == "tiny" else 1.0

    def summarize(records: Sequence[Record]) -> None:
        write_summary(output, records, shape)

    runner = Runner(output, seconds, summarize, patience=patience)
    with tempfile.TemporaryDirectory() as folder, _environment(Path(folder)):
        steps = planned_steps(runner, output, shape, Path(folder))
        runner.run([step for step in steps if not only or step.name in only])
    return runner.records


def _add_packages(site: Path) -> None:
    """Let this process, and those that the package starts, import from a folder first."""
    sys.path.insert(1, str(site))
    inherited = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, [inherited]), str(site)])


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Use no hub, and no cache of an earlier look."""
    before = dict(os.environ)
    os.environ |= {"XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def planned_steps(runner: Runner, output: Path, shape: str, folder: Path) -> list[Step]:
    """Return the steps with their time, the most valuable first."""
    # After `--site`, and each import once.
    from tests.gpu import (
        answering,
        ceilings,
        codes,
        kernels,
        out_of_memory,
        sharded,
        small_training,
        speed,
    )
    from tests.gpu.material import Setting

    if shape == "tiny":
        setting = Setting(shape, length=64, examples=4, packs=2, steps=2, folder=folder)
    else:
        setting = Setting(shape, length=4096, examples=4, packs=2, steps=4, folder=folder)
    bases = speed.Bases(setting)
    package = small_training.NEEDS
    return [
        Step("ceilings", 30, lambda: ceilings.cases(setting)),
        Step("small training", 120, lambda: small_training.cases(setting), package),
        Step("codes", 15, lambda: codes.cases(setting), ("bitsandbytes",)),
        Step("sharded", 20, lambda: sharded.cases(setting), sharded.NEEDS),
        Step("speed", 240, lambda: speed.cases(setting, bases), package),
        Step("profile", 40, lambda: kernels.cases(setting, bases, runner.records, output), package),
        Step("answering", 80, lambda: answering.cases(setting, bases), package),
        Step("out of memory", 40, lambda: out_of_memory.cases(setting, bases), package),
        Step("late", 120, lambda: speed.late_cases(setting, bases), package),
    ]


if __name__ == "__main__":
    sys.exit(main())
