"""Things that a new user tries: own chats, an adapter of PEFT alone, mistakes, a launcher."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lora_kit.cli import main
from lora_kit.evaluation.ledger import read_ledger
from lora_kit.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "eval" / "evaluate_adapter.py"
BIN = Path(sys.executable).parent

QUIZ = """
name: quiz
role: retention
tasks:
  - {name: quiz, kind: multiple_choice, source: general-knowledge, limit: 40, margin: 0.5}
  - {name: prose, kind: loss, source: python-reference, limit: 10, max_length: 64, margin: 2}
  - name: follow
    kind: instructions
    source: instructions
    limit: 10
    max_new_tokens: 4
    margin: 0.9
"""


def start(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        check=False,
    )


@pytest.fixture
def peft_adapter(tiny: Path, tmp_path: Path) -> Path:
    """An adapter that PEFT alone made, which knows nothing of fingerprints or recipes."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path / "made-elsewhere")
    (tmp_path / "quiz.yaml").write_text(QUIZ)
    return tmp_path / "made-elsewhere"


@pytest.mark.slow  # the whole way, as tests/integration/test_run.py goes it
def test_own_chats_from_recipe_to_merged_model(tiny_recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "quiz.yaml").write_text(QUIZ)
    recipe = tiny_recipe.model_dump(mode="json")
    recipe["evaluation"]["suites"] = ["quiz.yaml"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    planned = start(BIN / "lora-kit", "plan", "mine.yaml", "--json", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    assert plan["rows"] == 16
    assert plan["counts"]["dropped"] == 0
    done = start(BIN / "lora-kit", "run", "mine.yaml", cwd=tmp_path)
    assert done.returncode in (0, 3, 4), done.stderr
    assert "Verdict:" in done.stdout
    assert (tmp_path / "runs" / "tiny" / "merged" / "merge.json").is_file()


def test_an_adapter_of_peft_alone_is_evaluated_by_the_script(peft_adapter: Path) -> None:
    place = peft_adapter.parent
    done = start(
        BIN / "accelerate", "launch", "--cpu", SCRIPT, peft_adapter, "--suite", "quiz.yaml",
        "--output", "one", cwd=place,
    )  # fmt: skip
    # A launcher says 1 whatever the status of what it has launched.
    assert done.returncode in (0, 1), done.stderr
    assert "Verdict:" in done.stdout
    rows = read_ledger(place / "one" / "ledger.parquet")
    assert {row.arm for row in rows} == {"base", "adapter", "drift"}
    assert sum(row.arm != "drift" for row in rows) == 2 * 60


@pytest.mark.slow  # three processes that each load a model
def test_two_processes_fill_the_ledger_of_one(peft_adapter: Path) -> None:
    place = peft_adapter.parent
    # Four looks, so that the processes have to agree on where the task ends.
    (place / "looks.yaml").write_text(
        QUIZ.replace("limit: 40", "limit: 160").replace("margin: 0.5", "margin: 0.02")
    )
    arguments = (SCRIPT, peft_adapter, "--suite", "looks.yaml", "--output")
    one = start(sys.executable, *arguments, "one", cwd=place)
    # Measured anew: the base's outcomes would be taken from what the first has kept.
    torchrun = (BIN / "torchrun", "--nproc-per-node", 2)
    two = start(*torchrun, *arguments, "two", "--no-cache", cwd=place)
    # A launcher says 1 for FAIL and INCONCLUSIVE alike.
    assert bool(one.returncode) == bool(two.returncode), two.stderr
    assert two.stdout.count("Verdict:") == 1

    def scores(name: str) -> dict[tuple[str, str, str], float | None]:
        rows = read_ledger(place / name / "ledger.parquet")
        return {(row.arm, row.task, row.item): row.score for row in rows}

    assert scores("one") == scores("two")
    first, second = (json.loads((place / n / "verdict.json").read_text()) for n in ("one", "two"))
    looks = first["suites"][0]["tasks"][0]["looks"]
    assert looks["planned"] == 4
    assert looks == second["suites"][0]["tasks"][0]["looks"]


@pytest.mark.slow  # evaluates three stages; tests/test_stages.py has the matrix
def test_adapters_in_a_row_are_a_matrix(peft_adapter: Path) -> None:
    place = peft_adapter.parent
    for number in (1, 2):
        task = {"name": "line", "kind": "loss", "source": "python-reference", "limit": 4}
        suite = {"name": f"stage-{number}", "role": "gain", "tasks": [task]}
        (place / f"stage-{number}.yaml").write_text(yaml.safe_dump(suite))
    shutil.copytree(peft_adapter, place / "later")
    suites = ["--suite", "stage-1.yaml", "--suite", "stage-2.yaml"]
    done = start(BIN / "lora-kit", "continual", peft_adapter, "later", *suites, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["stages"] == ["base", "made-elsewhere", "later"]
    # The same adapter twice: nothing is forgotten.
    assert found["scores"][1] == found["scores"][2]
    assert found["transfers"]["nats/token"]["forgetting"] == 0
    assert json.loads((place / "continual" / "continual.json").read_text()) == found


def test_a_mistake_ends_with_two_and_no_traceback(tmp_path: Path) -> None:
    done = start(BIN / "lora-kit", "plan", "quikstart", cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean `quickstart`?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["evaluate", "absent"], "neither a run (no recipe.yaml) nor an adapter"),
        (["merge", "absent"], "neither a run (no recipe.yaml) nor an adapter"),
        (["release", "absent"], "not a run directory, since it has no recipe.yaml"),
        (["verify", "absent"], "not a run directory, since it has no recipe.yaml"),
        (["plan", "absent.yaml"], "no such file"),
        (["train", "quickstart", "--set", "training.epochs=many"], "training.epochs"),
    ],
)
def test_bad_usage_ends_with_two_and_a_remedy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    # A message may be wrapped at the terminal's width.
    assert part in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["qlora-8b-chat", "lora-8b-chat"])
def test_the_recipes_for_a_gpu_are_planned_without_their_backbone(
    name: str,
    chats: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(SystemExit) as planned:
        main(["plan", name, "--set", f"data.train.0.source={chats}"])
    assert planned.value.code == 0
    printed = capsys.readouterr().out
    assert "Qwen/Qwen3-8B: not on this machine" in printed
    assert "53 for training (3 of them replay)" in printed
    with pytest.raises(SystemExit) as ended:
        main(["plan", name])
    assert ended.value.code == 2
    assert "data.train.0.source: no such file (got chats.jsonl)" in capsys.readouterr().err
