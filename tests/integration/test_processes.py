"""The same command in one process and in several: the same training, the same errors, once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lora_kit.cli import main
from lora_kit.recipe.recipe import Recipe
from lora_kit.training.guards import Guards
from tests.integration.with_gradient import write_gradient

ROOT = Path(__file__).parents[2]
# One thread each, so that two processes on two cores do not wait for one another's spinning.
SETTINGS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
LORA_KIT = ("-m", "lora_kit")
SECONDS_TO_END = 60


def launched(processes: int, *arguments: str) -> list[str]:
    if processes == 1:
        return [sys.executable, *arguments]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc-per-node", str(processes), *arguments]


def start(
    processes: int, arguments: Sequence[str], cwd: Path, program: Sequence[str] = LORA_KIT
) -> subprocess.CompletedProcess[str]:
    """A command in so many processes, or in this one: the libraries take seconds to import."""
    if processes == 1:
        return in_this_process(arguments, cwd)
    return subprocess.run(
        launched(processes, *program, *arguments),
        cwd=cwd,
        env=os.environ | SETTINGS,
        capture_output=True,
        text=True,
        check=False,
    )


def in_this_process(arguments: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    out, err = StringIO(), StringIO()
    with chdir(cwd), redirect_stdout(out), redirect_stderr(err):
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        code = ended.value.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess([*arguments], code, out.getvalue(), err.getvalue())


def gradient(path: Path) -> torch.Tensor:
    tensors = load_file(path)
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


# 7 rows in steps of 3, or of 5 by four processes, so that shares are uneven, and in the end one is
# empty.
SHORT = (
    "data.train=[{source: chats.jsonl, limit: 7}]",
    "data.validation=[{source: chats.jsonl, limit: 4}]",
    # In half precision, a pass of other rows rounds otherwise.
    "backbone.dtype=float32",
    "training.warmup_ratio=0",
    "evaluation.suites=[quiz.yaml]",
    "evaluation.arms=[base, adapter]",
)
LINE = {"name": "line", "kind": "loss", "source": "python-reference", "limit": 2}
QUIZ = {"name": "quiz", "role": "gain", "tasks": [LINE]}


@pytest.mark.covers("lora", on=("nf4",), launcher="several processes, CPU")
@pytest.mark.parametrize(
    ("processes", "random"),
    [
        (2, True),
        pytest.param(2, False, marks=pytest.mark.slow),
        pytest.param(4, False, marks=pytest.mark.slow),
    ],
)
def test_several_processes_train_as_one(
    chats: Path,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    random: bool,
) -> None:
    """The gradient is that of the whole batch, and the end the same."""
    monkeypatch.setattr(Guards, "on_pre_optimizer_step", write_gradient)
    script = str(ROOT / "tests" / "integration" / "with_gradient.py")
    fields = (*SHORT, f"training.batch_size={3 if processes == 2 else 5}")
    if random:
        # At the rate of the real model, it would learn too little in three steps.
        fields = (*fields, f"backbone.model={tiny}", "training.learning_rate=1e-2")
    options = [part for field in fields for part in ("--set", field)]
    (tmp_path / "quiz.yaml").write_text(yaml.safe_dump(QUIZ))
    found = {}
    for number in (1, processes):
        name = f"on-{number}"
        monkeypatch.setenv("GRADIENT", str(tmp_path / f"{name}.safetensors"))
        arguments = ["train", "quickstart", *options, "--output", name]
        done = start(number, arguments, tmp_path, [script])
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Next:") == 1
        record = json.loads((tmp_path / name / "run.json").read_text())["training"]
        found[number] = record, gradient(tmp_path / f"{name}.safetensors")
    (alone, g), (shared, h) = found[1], found[processes]
    assert torch.nn.functional.cosine_similarity(g, h, dim=0) > 0.9999
    assert float(h.norm() / g.norm()) == pytest.approx(1, abs=1e-3)
    assert (shared["steps"], shared["tokens"]) == (alone["steps"], alone["tokens"])
    assert shared["first_loss"] == pytest.approx(alone["first_loss"], rel=1e-4)
    assert shared["validation_before"] == pytest.approx(alone["validation_before"], rel=1e-4)
    assert shared["validation_after"] == pytest.approx(alone["validation_after"], rel=5e-3)
    assert alone["validation_after"] < alone["validation_before"] - 0.01


@pytest.fixture
def place(tiny_recipe: Recipe, tmp_path: Path) -> Path:
    """A folder with a recipe of ten steps on a model of random weights.

    The last step of an epoch has one row, which leaves a second process without any.
    """
    (tmp_path / "quiz.yaml").write_text(yaml.safe_dump(QUIZ))
    changed = tiny_recipe.model_dump(mode="json")
    changed["data"]["train"][0]["limit"] = 17
    changed["training"] |= {"epochs": 2.0, "save_steps": 1, "save_total_limit": 100}
    changed["evaluation"]["suites"] = [str(tmp_path / "quiz.yaml")]
    (tmp_path / "tiny.yaml").write_text(Recipe.model_validate(changed).to_yaml())
    return tmp_path


def train(processes: int, place: Path, name: str) -> subprocess.CompletedProcess[str]:
    return start(processes, ["train", "tiny.yaml", "--resume", "--output", name], place)


def ranks(launcher: int) -> Mapping[int, int]:
    """Process ids of a launcher's processes, by rank."""
    found = {}
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for pid in map(int, children):
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        rank = next((v for v in environ if v.startswith(b"RANK=")), None)
        if rank:
            found[int(rank[5:])] = pid
    return found


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_training_goes_on_with_another_number_of_processes(
    place: Path, before: int, after: int
) -> None:
    """One process is killed; all end, and what is written goes on."""
    whole = train(1, place, "whole")
    assert whole.returncode == 0, whole.stderr
    arguments = [*LORA_KIT, "train", "tiny.yaml", "--output", "cut"]
    metrics = place / "cut" / "metrics.jsonl"
    with subprocess.Popen(
        launched(before, *arguments),
        cwd=place,
        env=os.environ | SETTINGS,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None:
            if metrics.is_file() and len(metrics.read_text().splitlines()) >= 3:
                victim = ranks(process.pid)[1] if before > 1 else process.pid
                os.kill(victim, signal.SIGKILL)
                killed = time.monotonic()
                break
            time.sleep(0.01)
        said = process.communicate(timeout=SECONDS_TO_END)[1]
        assert process.returncode != 0
        assert time.monotonic() - killed < SECONDS_TO_END
    if before > 1:
        assert said.count("another process is gone") <= 1
        # The launcher has a traceback of its own.
        assert "lora_kit/pipeline" not in said, said
    assert not (place / "cut" / "adapter").exists()
    gone_on = train(after, place, "cut")
    assert gone_on.returncode == 0, gone_on.stderr
    assert "resuming from step-" in gone_on.stderr
    assert losses(place / "cut") == pytest.approx(losses(place / "whole"), rel=1e-3)


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_and_is_told_once(place: Path) -> None:
    """Only the second process finds its data wanting."""
    script = place / "second.py"
    script.write_text(
        "import os\n"
        "from lora_kit import pipeline\n"
        "from lora_kit.cli import main\n"
        "from lora_kit.runtime.errors import DataError\n"
        "from lora_kit.preflight import prepare as preparation\n"
        "prepare = preparation.prepare\n"
        "def wanting(*arguments, **named):\n"
        "    if os.environ['RANK'] == '1':\n"
        "        raise DataError('chats.jsonl:7: is not there on this machine')\n"
        "    return prepare(*arguments, **named)\n"
        "preparation.prepare = wanting\n"
        "main()\n"
    )
    started = time.monotonic()
    done = start(2, ["train", "tiny.yaml", "--output", "run"], place, [str(script)])
    assert time.monotonic() - started < 2 * SECONDS_TO_END  # with the libraries' import
    assert done.returncode != 0
    assert done.stderr.count("process 1 of 2: chats.jsonl:7: is not there on this machine") == 1
    assert not (place / "run").exists()


def test_a_mistake_that_all_processes_see_is_told_once(place: Path) -> None:
    done = start(2, ["train", "tiny.yaml", "--set", "training.epochs=-1"], place)
    assert done.returncode != 0
    assert done.stderr.count("training.epochs") == 1


@pytest.mark.slow
def test_a_process_with_another_recipe_is_refused(place: Path) -> None:
    field = "training.learning_rate=0.5"
    script = place / "other.py"
    script.write_text(
        "import os, sys\n"
        "from lora_kit.cli import main\n"
        f"main(sys.argv[1:] + (['--set', {field!r}] if os.environ['RANK'] == '1' else []))\n"
    )
    done = start(2, ["train", "tiny.yaml", "--output", "run"], place, [str(script)])
    assert done.returncode != 0
    assert done.stderr.count("process 1: differs from process 0 in recipe") == 1
    assert not (place / "run").exists()


@pytest.mark.slow
def test_a_process_with_other_rows_is_refused(place: Path) -> None:
    """The same recipe, and a file that is another one on the second machine."""
    recipe = yaml.safe_load((place / "tiny.yaml").read_text())
    rows = Path(recipe["data"]["train"][0]["source"]).read_text().splitlines()
    recipe["data"]["train"] = [{"source": "rows.jsonl", "limit": 16}]
    for number, lines in enumerate((rows, rows[::-1])):
        machine = place / f"machine-{number}"
        machine.mkdir()
        (machine / "rows.jsonl").write_text("\n".join(lines) + "\n")
        (machine / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    script = place / "apart.py"
    script.write_text(
        "import os\n"
        "os.chdir('machine-' + os.environ['RANK'])\n"
        "from lora_kit.cli import main\n"
        "main()\n"
    )
    done = start(2, ["train", "tiny.yaml", "--output", str(place / "run")], place, [str(script)])
    assert done.returncode != 0
    assert done.stderr.count("process 1: differs from process 0 in the rows of data.train") == 1
    assert not (place / "run").exists()
