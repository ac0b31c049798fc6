"""The run directory: where everything that a recipe produced lies, and how it came about."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_kit.backbone.load import Backbone
from lora_kit.runtime.errors import RecipeError
from lora_kit.runtime.files import read_json, write_json, write_text
from lora_kit.recipe.document import read_document
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sections import MERGED_ARMS
from lora_kit.recipe.identity import training_digest

RECORDED = (
    "lora-kit", "torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets",
)  # fmt: skip


@dataclass(frozen=True)
class RunDirectory:
    """The layout of a run."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.yaml"

    @property
    def record(self) -> Path:
        """Versions, hardware, hashes, counts and durations."""
        return self.root / "run.json"

    @property
    def adapter(self) -> Path:
        """The PEFT adapter."""
        return self.root / "adapter"

    @property
    def metrics(self) -> Path:
        """One JSON object a training step."""
        return self.root / "metrics.jsonl"

    @property
    def self_distillation(self) -> Path:
        """What the base said for the training rows before the training."""
        return self.root / "generated_rows.json"

    @property
    def checkpoints(self) -> Path:
        """What a training that was cut off goes on from; gone when it is done."""
        return self.root / "checkpoints"

    @property
    def training_plot(self) -> Path:
        """Loss, learning rate and gradient norm."""
        return self.root / "training.png"

    @property
    def evaluation(self) -> Path:
        """Ledger, verdict and report."""
        return self.root / "evaluation"

    @property
    def scaled(self) -> Path:
        """The PEFT adapter with the scale inside that `rescale` took."""
        return self.root / "adapter-rescaled"

    @property
    def rescale(self) -> Path:
        """What `rescale` measured: each half an evaluation of its own."""
        return self.root / "rescale"

    @property
    def rescale_record(self) -> Path:
        """Scales, estimates, choice and proof."""
        return self.root / "rescale.json"

    @property
    def rescale_plot(self) -> Path:
        """Gain against forgetting over the scales."""
        return self.root / "rescale.png"

    @property
    def merged(self) -> Path:
        """The merged model and `merge.json`."""
        return self.merged_as("merged")

    def merged_as(self, arm: str) -> Path:
        """The merged model that is the arm of this name."""
        return self.root / arm

    @property
    def scratch(self) -> Path:
        """The run of the same recipe on weights that were never pretrained."""
        return self.root / "scratch"

    @property
    def release(self) -> Path:
        """What ships."""
        return self.root / "release"

    @property
    def results(self) -> tuple[Path, ...]:
        """All directories that a run leaves."""
        return (
            self.checkpoints,
            self.adapter,
            self.evaluation,
            self.scaled,
            self.rescale,
            *(self.merged_as(arm) for arm in MERGED_ARMS),
            self.scratch,
            self.release,
            self.root / "tensorboard",
        )

    def load_recipe(self) -> Recipe:
        """The recipe that the run was made with.

        Raises:
            RecipeError: if this is no run directory.
        """
        if not self.recipe.is_file():
            raise RecipeError(f"{self.root}: no recipe.yaml, so no run directory")
        return Recipe.load(self.recipe)

    def load_record(self) -> dict[str, Any]:
        """What `run.json` says; nothing if there is none yet.

        Raises:
            RecipeError: if it is no JSON object.
        """
        return read_json(self.record, RecipeError) if self.record.is_file() else {}

    def update_record(self, **entries: Any) -> None:
        """Add to `run.json`."""
        write_json(self.record, self.load_record() | entries)


def last_run_directory(recipe: Recipe, output: Path | None) -> RunDirectory | None:
    """Return the run in `output`, or the newest run of the recipe's name; `None` without one."""
    if output is not None:
        run = RunDirectory(output)
        return run if run.recipe.is_file() else None
    numbered = {
        number: RunDirectory(path)
        for path in Path("runs").glob(f"{recipe.name}*")
        if (number := _number(path.name, recipe.name))
    }
    # The recipe `a` has its second run in `a-2`, and so has the recipe `a-2` its first.
    own = [number for number, run in numbered.items() if _is_run_of(run, recipe.name)]
    return numbered[max(own)] if own else None


def _number(directory: str, name: str) -> int:
    """Return 1 for `NAME`, N for `NAME-N`, and 0 for any other directory."""
    rest = directory.removeprefix(name)
    return 1 if not rest else int(rest[1:]) if rest[0] == "-" and rest[1:].isdigit() else 0


def _is_run_of(run: RunDirectory, name: str) -> bool:
    try:
        return bool(read_document(run.recipe).value.get("name") == name)
    except RecipeError:
        return False


def new_run_directory(recipe: Recipe, output: Path | None, overwrite: bool = False) -> RunDirectory:
    """Choose the directory of a new run; no earlier run is ever written over unasked.

    Args:
        recipe: names the run.
        output: the directory, or `None` for `runs/NAME`, `runs/NAME-2` and so on.
        overwrite: whether `output` may hold an earlier run.

    Raises:
        RecipeError: if `output` is there already.
    """
    if output is not None:
        if output.exists() and not output.is_dir():
            raise RecipeError(f"{output}: is a file; --output names a directory")
        if output.exists() and any(output.iterdir()) and not overwrite:
            raise RecipeError(
                f"{output}: is there already and not empty; choose another --output, or say "
                "--overwrite"
            )
        if output.exists() and any(output.iterdir()) and not RunDirectory(output).recipe.is_file():
            raise RecipeError(
                f"{output}: holds no run (no recipe.yaml) that --overwrite could replace; choose "
                "another --output"
            )
        return RunDirectory(output)
    return RunDirectory(next(path for path in _names(recipe) if not path.exists()))


def claim_run_directory(
    recipe: Recipe, output: Path | None, overwrite: bool = False
) -> RunDirectory:
    """Make the directory of a new run, which is nobody else's from then on.

    Of runs that begin in the same instant all find the same name free, and one of them can make it;
    the others take the next. To be called when nothing is refused any more, so that no refusal
    leaves an empty directory.

    Args:
        recipe: as in `new_run_directory`.
        output: as in `new_run_directory`.
        overwrite: as in `new_run_directory`.

    Raises:
        RecipeError: if `output` is there already, or another run was faster.
    """
    if output is None:
        return RunDirectory(next(path for path in _names(recipe) if _made(path)))
    was_there = output.exists()
    run = new_run_directory(recipe, output, overwrite)
    if not _made(output) and not was_there:
        raise RecipeError(f"{output}: another run has just begun there; choose another --output")
    return run


def _names(recipe: Recipe) -> Iterator[Path]:
    """`runs/NAME`, `runs/NAME-2` and so on."""
    yield Path("runs") / recipe.name
    for number in itertools.count(2):
        yield Path("runs") / f"{recipe.name}-{number}"


def _made(path: Path) -> bool:
    """Whether a directory is made here, and was not there before."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def start_record(run: RunDirectory, recipe: Recipe, backbone: Backbone, command: str) -> None:
    """Write the resolved recipe and what the run stands on."""
    resolved = recipe.model_copy(update={"backbone": backbone.spec})
    write_text(run.recipe, resolved.to_yaml())
    run.update_record(
        command=command,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=recipe.seed,
        backbone=asdict(backbone.fingerprint) | {"digest": backbone.fingerprint.digest},
        versions=versions(),
        machine=machine(),
        checkout=_checkout(),
        recipe_sha256=training_digest(run.recipe),
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the figures depend on."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        found[name] = importlib.metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """The hardware, without names that would tell whose it is."""
    import torch

    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "accelerators": accelerators,
    }


def peak_memory() -> int:
    """Bytes of resident memory that this program held at most.

    Linux hands `ru_maxrss` on through exec, so that a child's would be at least its parent's; what
    /proc says begins anew.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _checkout() -> dict[str, Any] | None:
    """Commit of the package's checkout and whether it was changed; `None` for an installed one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
