"""Preferences and rewards trained by two processes as by one: gradient, losses, metrics, resume."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lora_kit.recipe.recipe import Recipe
from tests.embedding import embedding_recipe, pairs
from tests.head_recipes import write_lines
from tests.integration.objectives_in_turn import Job, train
from tests.integration.test_processes import QUIZ, SETTINGS, gradient, launched, start
from tests.preferring import OBJECTIVES, recipe_of
from tests.rewarding import reward_recipe
from tests.training.cut import with_training

pytestmark = pytest.mark.slow
# The reward model that is trained first gives rewards to grpo.
# An embedding has a step in passes of one pair, and a step at once.
TRAINED = ("reward", "embedding", "embedding-at-once", *OBJECTIVES)
STEPS = dict.fromkeys(TRAINED, 3) | {"dpo": 6, "kto": 6}
# TRL averages these over forward passes, which hold answers in random order.
AVERAGED = {"grpo": {"kl", "entropy"}}


def recipe_for(objective: str, tiny: Path, folder: Path) -> Recipe:
    """Return a recipe of three steps, or of six where one is resumed.

    Seven rows in steps of three and passes of one (kto: of six and of three): one process has two
    passes of a step and the other one, and in an epoch's last step, of one row, the other has none
    (embeddings: of nine texts, a process has three passes and the other two, or all at once).
    """
    epochs = STEPS[objective] // 3
    sizes = {"batch_size": 3, "micro_batch_size": 1, "epochs": epochs, "warmup_ratio": 0.0}
    if objective == "kto":
        sizes |= {"batch_size": 6, "micro_batch_size": 3, "epochs": 3}
    if objective == "grpo":
        sizes = {"epochs": epochs, "warmup_ratio": 0.0}
        document = recipe_of(tiny, folder, objective, **sizes).model_dump(mode="json")
        document["grpo"] |= {"beta": 0.1, "rewards": ["chrf", f"run:{folder / 'reward-alone'}"]}
        rows = Path(document["data"]["train"][0]["source"])
        # A reward model takes no rated answers.
        lines = [json.loads(line) | {"label": True} for line in rows.read_text().splitlines()]
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Recipe.model_validate(document)
    if objective == "sdft":
        return recipe_of(
            tiny, folder, objective, epochs=epochs, warmup_ratio=0.0, micro_batch_size=2
        )
    if objective.startswith("embedding"):
        (own := folder / objective).mkdir()
        if objective == "embedding-at-once":
            sizes.pop("micro_batch_size")
        document = embedding_recipe(tiny, own, training=sizes).model_dump(mode="json")
        # Texts of unlike lengths do not share a forward pass.
        lines = pairs(48)
        for n, one in enumerate(lines):
            one |= {"negative": f"none {n}", "anchor": n % 2 * "a long text of " + one["anchor"]}
        write_lines(own / "train.jsonl", lines)
    elif objective == "reward":
        document = reward_recipe(tiny, folder, training=sizes).model_dump(mode="json")
    else:
        document = recipe_of(tiny, folder, objective, **sizes).model_dump(mode="json")
    document["data"]["train"][0]["limit"] = 7
    return Recipe.model_validate(document)


def entries(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").open()]


def adapter(run: Path) -> torch.Tensor:
    return gradient(run / "adapter" / "adapter_model.safetensors")


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / one.norm())


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As each of several processes has; other numbers of threads add in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(one_thread: None, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of each objective: by one process, by two, and by one after the other."""
    folder = tmp_path_factory.mktemp("processes")
    recipes = {objective: recipe_for(objective, tiny, folder) for objective in TRAINED}

    def job(objective: str, name: str, **own: Any) -> Job:
        recipe = recipes[objective]
        if not own:
            recipe = with_training(recipe, save_steps=100)
        run = folder / f"{objective}-{name}"
        return Job(recipe=recipe.model_dump_json(), run=str(run), **own)

    for one in (*(job(one, "alone") for one in TRAINED), job("kto", "joined", cut=3)):
        with pytest.MonkeyPatch.context() as patched:
            train(one, patched)
    shared = [job(one, "shared") for one in TRAINED]
    shared += [job("kto", "joined", resume=True), job("dpo", "left", cut=4)]
    shared.append(job("grpo", "sampled", cut=1, sampled=True))
    (folder / "jobs.json").write_text(json.dumps(shared))
    done = subprocess.run(
        launched(2, "-m", "tests.integration.objectives_in_turn", str(folder / "jobs.json")),
        env=os.environ | SETTINGS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("resuming from step-000003") == 1, done.stderr
    before = (folder / "dpo-left" / "metrics.jsonl").read_text().splitlines()[0]
    with pytest.MonkeyPatch.context() as patched:
        train(job("dpo", "left", resume=True), patched)
    # With its seconds: a training that starts anew would write others.
    assert (folder / "dpo-left" / "metrics.jsonl").read_text().splitlines()[0] == before
    return folder


@pytest.mark.covers("lora", on=("none",), launcher="several processes, CPU")
@pytest.mark.parametrize("objective", TRAINED)
def test_the_gradient_is_that_of_one_process(folder: Path, objective: str) -> None:
    """Sums of float32 in another order; each is rounded by 6e-8 of its terms.

    The gradient of sdft is the difference of two distributions that are almost equal at first.
    """
    alone, shared = (
        gradient(folder / f"{objective}-{name}.safetensors") for name in ("alone", "shared")
    )
    assert alone.norm() > 0
    assert distance(alone, shared) < (1e-5 if objective == "sdft" else 1e-6)


@pytest.mark.parametrize("objective", TRAINED)
def test_losses_and_metrics_are_those_of_one_process(folder: Path, objective: str) -> None:
    alone, shared = (entries(folder / f"{objective}-{name}") for name in ("alone", "shared"))
    assert len(alone) == len(shared) == STEPS[objective]
    for one, other in zip(alone, shared, strict=True):
        assert set(one) == set(other)
        for name in set(one) - {"seconds"} - AVERAGED.get(objective, set()):
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name
    # AdamW divides by the size of a gradient, also of one that is hardly more than its rounding.
    assert distance(*(adapter(folder / f"{objective}-{n}") for n in ("alone", "shared"))) < 1e-4


@pytest.mark.parametrize("run", ["kto-joined", "dpo-left"])
def test_a_training_resumes_with_another_number_of_processes(folder: Path, run: str) -> None:
    """From one process to two, and from two to one."""
    alone = folder / f"{run.partition('-')[0]}-alone"
    assert [one["step"] for one in entries(folder / run)] == list(range(1, 7))
    expected = [one["loss"] for one in entries(alone)]
    assert [one["loss"] for one in entries(folder / run)] == pytest.approx(expected, abs=1e-5)
    assert distance(adapter(alone), adapter(folder / run)) < 1e-4


def test_each_process_samples_from_a_random_state_of_its_own(folder: Path) -> None:
    """Equal states would give the prompts of both processes the same noise."""
    step = folder / "grpo-sampled" / "checkpoints" / "step-000001"
    states = [load_file(step / f"random-{process}.safetensors")["torch"] for process in (0, 1)]
    assert not torch.equal(*states)
    assert all(one["completions/mean_length"] > 0 for one in entries(folder / "grpo-sampled"))


def test_no_process_waits_for_one_with_fewer_passes(tiny: Path, tmp_path: Path) -> None:
    """Eight texts in passes of two: two passes of two processes, and one of the third."""
    sizes = {"batch_size": 4, "micro_batch_size": 1, "epochs": 1.0}
    document = embedding_recipe(tiny, tmp_path, training=sizes).model_dump(mode="json")
    document["data"]["train"][0]["limit"] = 12
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    done = start(3, ["train", "recipe.yaml", "--output", "run"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(entries(tmp_path / "run")) == 3


def test_two_processes_train_the_real_model_on_pairs_as_one(tmp_path: Path) -> None:
    """On real pairs of unequal lengths, in float32: passes of other rows only round otherwise."""
    fields = (
        "data.train=[{source: stdlib-docstring-pairs, limit: 7}]",
        "training.batch_size=3",
        "training.warmup_ratio=0",
        "data.max_length=256",
        "backbone.dtype=float32",
        "evaluation.suites=[quiz.yaml]",
        "evaluation.arms=[base, adapter]",
    )
    (tmp_path / "quiz.yaml").write_text(yaml.safe_dump(QUIZ))
    options = [part for field in fields for part in ("--set", field)]
    for processes, name in ((1, "alone"), (2, "shared")):
        done = start(processes, ["train", "dpo", *options, "--output", name], tmp_path)
        assert done.returncode == 0, done.stderr
    alone, shared = (entries(tmp_path / name) for name in ("alone", "shared"))
    assert len(alone) == len(shared) == 3
    assert alone[-1]["rewards/margins"] != 0
    for one, other in zip(alone, shared, strict=True):
        for name in set(one) - {"seconds"}:
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-3), name
    assert distance(adapter(tmp_path / "alone"), adapter(tmp_path / "shared")) < 1e-2
