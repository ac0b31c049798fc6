"""The whole way on the real model, by the commands a user types, in processes of their own."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lora_kit.cli import main

ROOT = Path(__file__).parents[2]

GAIN = """
name: small-gain
role: gain
tasks:
  - {name: reference-loss, kind: loss, source: stdlib-docstrings, limit: 8, max_length: 384}
"""

LINES = """
name: small-lines
role: gain
tasks:
  - name: line
    kind: generation
    source: stdlib-docstrings
    metric: chrf
    limit: 8
    max_length: 384
    max_new_tokens: 8
"""

RETENTION = """
name: small-retention
role: retention
tasks:
  - {name: prose, kind: loss, source: python-reference, limit: 6, max_length: 64, margin: 0.2}
"""

UNDECIDED = """
name: undecided
role: retention
tasks:
  - {name: quiz, kind: multiple_choice, source: general-knowledge, limit: 12, margin: 0.01}
"""


def command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lora_kit", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
        check=False,
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("workplace")
    suites = {"gain": GAIN, "lines": LINES, "retention": RETENTION, "undecided": UNDECIDED}
    for name, text in suites.items():
        (place / f"{name}.yaml").write_text(text)
    recipe = {
        "name": "small",
        # In half precision, what three steps change would be rounded away where it is merged.
        "backbone": {
            "model": "smollm2-135m-instruct",
            "quantization": "nf4",
            "dtype": "float32",
        },
        "data": {
            "train": [{"source": "stdlib-docstrings", "limit": 12}],
            "validation": [{"source": "stdlib-docstrings", "split": "validation", "limit": 2}],
            "max_length": 384,
        },
        "training": {"batch_size": 4, "learning_rate": 1e-3},
        "evaluation": {
            "suites": ["gain.yaml", "retention.yaml"],
            "arms": ["base", "adapter", "merged", "fewshot", "retrieval"],
            "shots": 2,
        },
    }
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return place


@pytest.fixture(scope="module")
def finished(workplace: Path) -> Path:
    """A run that passed and was released, with the counts of what it read."""
    counting = [sys.executable, "-m", "tests.integration.counting", "counts.json"]
    done = subprocess.run(
        [*counting, "run", "recipe.yaml", "--json"],
        capture_output=True,
        text=True,
        cwd=workplace,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["verdict"]["decision"] == "PASS"
    assert outcome["release"] == "runs/small/release"
    assert "token/s" in done.stderr
    assert done.stderr.startswith("loading torch")
    stages = re.findall(r"^stage (\d)/4: (\w+)", done.stderr, flags=re.MULTILINE)
    assert stages == [("1", "train"), ("2", "merge"), ("3", "evaluate"), ("4", "release")]
    assert "Traceback" not in done.stderr
    return workplace / "runs" / "small"


def test_a_run_leaves_all_that_the_layout_names(finished: Path) -> None:
    for name in (
        "recipe.yaml",
        "run.json",
        "metrics.jsonl",
        "training.png",
        "adapter/adapter_model.safetensors",
        "evaluation/ledger.parquet",
        "evaluation/verdict.json",
        "evaluation/report.html",
        "evaluation/report.md",
        "merged/model.safetensors",
        "merged/merge.json",
        "release/README.md",
        "release/manifest.json",
        "release/adapter/adapter_config.json",
    ):
        assert (finished / name).stat().st_size > 0, name
    record = json.loads((finished / "run.json").read_text())
    verdict = json.loads((finished / "evaluation" / "verdict.json").read_text())
    assert record["backbone"]["digest"] == verdict["backbone"]
    assert record["training"]["validation_after"] < record["training"]["validation_before"]
    hidden = [path for path in finished.rglob(".*") if path.is_file()]
    assert hidden == [], "temporary files were left"


def test_a_run_reads_tokenizes_and_hashes_each_thing_once(finished: Path, workplace: Path) -> None:
    counts: dict[str, int] = json.loads((workplace / "counts.json").read_text())
    hashing = ("_hash: ", "_recall: ")
    once = {name: count for name, count in counts.items() if not name.startswith(hashing)}
    # By the evaluation, and by the release, which trusts no file.
    assert once.pop("judge: a ledger") == 2
    assert {name: count for name, count in once.items() if count != 1} == {}
    names = {name.split(": ")[0] for name in once}
    assert names == {"open_source", "tokenize_rows", "load_suites", "_plan"}
    splits = {"train", "validation", "test"}
    assert {name for name in once if "open_source: stdlib-docstrings" in name} == {
        f"open_source: stdlib-docstrings/{split}" for split in splits
    }
    rows = [name for name in once if name.startswith("tokenize_rows: ")]
    assert len(rows) == 12 + 2
    weights = {
        name: count
        for name, count in counts.items()
        if name.startswith(hashing) and name.endswith((".safetensors", ".gguf"))
    }
    # An earlier test may have hashed the backbone's, which the cache knows then.
    assert {Path(name).name for name in weights} >= {
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "adapter_model.safetensors",
        "model.safetensors",
    }
    assert {n for name, n in weights.items() if name.startswith("_hash: ")} == {1}


def test_the_merged_files_are_what_was_measured(finished: Path) -> None:
    verification = json.loads((finished / "merged" / "merge.json").read_text())["verification"]
    assert verification["passed"]
    assert verification["top1_agreement"] > 0.99
    assert verification["mean_kl"] < 1e-3 * verification["control_mean_kl"]


def test_plain_transformers_loads_the_release(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished / "release", use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(finished / "release")
    code = "def add(a, b):\n    total = a + b\n    return total"
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"Write the one-line docstring of this function.\n\n{code}"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**prompt, max_new_tokens=128, do_sample=False)[0]
    said = output[prompt["input_ids"].shape[1] :]
    # It ends because the turn does, not because nobody may say more.
    assert 1 < len(said) < 128
    assert tokenizer.convert_ids_to_tokens(int(said[-1])) == "<|im_end|>"


def test_the_card_of_a_release_says_the_licences_and_what_was_forgotten(finished: Path) -> None:
    card = (finished / "release" / "README.md").read_text()
    assert "| HuggingFaceTB/SmolLM2-135M-Instruct | base | Apache-2.0 | lora_kit's alias |" in card
    assert "| stdlib-docstrings | train, validation | Python-2.0.1 | Python's LICENSE |" in card
    assert "To be checked" not in card
    assert "| small-retention/prose |" in card.split("## Forgetting")[1]
    config = json.loads((finished / "release" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.slow  # tests/releasing/test_verification.py has each on a small one
def test_verify_passes_a_release_and_finds_a_changed_byte_a_lost_and_a_new_file(
    finished: Path, tmp_path: Path
) -> None:
    good = command("verify", str(finished / "release"))
    assert good.returncode == 0, good.stderr
    copy = tmp_path / "release"
    shutil.copytree(finished / "release", copy)
    weights = copy / "model.safetensors"
    with weights.open("r+b") as stream:
        stream.seek(weights.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    (copy / "config.json").unlink()
    (copy / "extra.py").write_text("print()")
    bad = command("verify", str(copy))
    assert bad.returncode == 3
    for part in (
        "changed: model.safetensors",
        "missing: config.json",
        "not in the manifest: extra.py",
    ):
        assert part in bad.stderr
    assert "Traceback" not in bad.stderr


def scores(directory: Path) -> dict[tuple[str, str, str], float | None]:
    from lora_kit.evaluation.ledger import read_ledger

    return {(e.arm, e.task, e.item): e.score for e in read_ledger(directory / "ledger.parquet")}


def test_every_arm_is_in_the_ledger(finished: Path) -> None:
    found = scores(finished / "evaluation")
    # Nothing to retrieve a likelihood from; drift is of the prompts of both suites.
    of_gain = {arm for arm, task, _ in found if task == "reference-loss"}
    assert of_gain == {"base", "adapter", "merged", "fewshot", "drift"}
    assert {arm for arm, task, _ in found if task == "prose"} == of_gain - {"fewshot"}
    verdict = json.loads((finished / "evaluation" / "verdict.json").read_text())
    assert verdict["merged"] == "PASS"
    for (arm, task, item), score in found.items():
        if arm == "merged":
            assert score == pytest.approx(found["adapter", task, item], abs=1e-3)


@pytest.mark.slow  # evaluates twice
def test_an_evaluation_that_is_killed_goes_on_and_gives_the_same_ledger(
    finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "again"
    arguments = ["evaluate", str(finished), "--suite", "retention.yaml", "--output", str(output)]
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_kit", *arguments, "--no-cache"],
        cwd=finished.parents[1],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    journal = output / ".journal-0.jsonl"
    while not (journal.is_file() and journal.stat().st_size):
        assert process.poll() is None, "it ended without a journal"
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (output / "ledger.parquet").exists()
    resumed = command(*arguments, cwd=finished.parents[1])
    assert resumed.returncode == 0, resumed.stderr
    assert "results of an earlier evaluation" in resumed.stderr
    whole = scores(finished / "evaluation")
    assert scores(output) == {key: score for key, score in whole.items() if key[1] == "prose"}
    assert not list(output.glob(".journal*"))


@pytest.mark.slow  # trains a second time
def test_an_arm_is_added_to_what_was_measured(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "lines"
    suite = ["--suite", "lines.yaml", "--output", str(output), "--json"]
    first = command("evaluate", str(finished), *suite, cwd=finished.parents[1])
    assert first.returncode in (0, 3, 4), first.stderr
    baselines = json.loads(first.stdout)["suites"][0]["tasks"][0]["baselines"]
    assert [baseline["arm"] for baseline in baselines] == ["fewshot", "retrieval"]
    before = scores(output)
    more = command("evaluate", str(finished), *suite, "--arm", "scratch", cwd=finished.parents[1])
    assert more.returncode in (0, 3, 4), more.stderr
    assert "never pretrained" in more.stderr
    after = scores(output)
    assert {key: score for key, score in after.items() if key in before} == before
    assert {arm for arm, _, _ in after} - {arm for arm, _, _ in before} == {"scratch"}
    # Trained once; the next time it is there.
    assert (finished / "scratch" / "adapter" / "adapter_model.safetensors").is_file()
    unknown = command("evaluate", str(finished), *suite, "--arm", "scrtch", cwd=finished.parents[1])
    assert unknown.returncode == 2
    assert "scrtch" in unknown.stderr


@pytest.mark.slow  # merges and evaluates
@pytest.mark.parametrize(("factor", "status"), [(8.0, 3), (0.0, 0)])
def test_a_damaged_adapter_fails_and_an_empty_one_changes_nothing(
    finished: Path, workplace: Path, tmp_path: Path, factor: float, status: int
) -> None:
    from safetensors.torch import load_file, save_file

    adapter = tmp_path / "adapter"
    shutil.copytree(finished / "adapter", adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    scaled = {k: t * factor if "lora_B" in k else t for k, t in weights.items()}
    save_file(scaled, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    done = command("evaluate", str(adapter), "--suite", "retention.yaml", "--json", cwd=workplace)
    assert done.returncode == status, done.stderr
    (task,) = json.loads(done.stdout)["suites"][0]["tasks"]
    if factor:
        assert task["decision"] == "FAIL"
        assert task["alarm"]
        assert task["drift"]["interval"]["delta"] > 0.1
    else:
        assert (task["interval"]["delta"], task["won"], task["lost"]) == (0, 0, 0)
        assert task["drift"]["interval"]["delta"] < 1e-6


@pytest.mark.slow  # trains and evaluates another
def test_a_run_is_released_only_on_the_suites_of_its_recipe(
    finished: Path, workplace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("release"))
    # Other suites have a directory of their own: the run keeps the verdict that it stands on.
    aside = command("evaluate", str(run), "--suite", "undecided.yaml", cwd=workplace)
    assert aside.returncode == 4, aside.stderr
    assert "INCONCLUSIVE" in aside.stdout
    assert "(needs about" in aside.stdout
    assert (run / "evaluation-undecided" / "report.html").is_file()
    assert command("verify", str(run)).returncode == 0
    shutil.rmtree(run / "evaluation")
    (run / "evaluation-undecided").rename(run / "evaluation")
    refused = command("release", str(run))
    assert refused.returncode == 3
    assert "undecided/quiz: INCONCLUSIVE" in refused.stderr
    assert "the suites differ from those fixed before training" in refused.stderr
    assert not (run / "release").exists()


def test_an_edited_verdict_does_not_open_the_gate(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("release"))
    path = run / "evaluation" / "verdict.json"
    path.write_text(path.read_text().replace('"base": ', '"base": 1'))
    with pytest.raises(SystemExit) as refused:
        main(["release", str(run)])
    assert refused.value.code == 2
    assert "does not follow from the ledger" in " ".join(capsys.readouterr().err.split())
    assert not (run / "release").exists()


def test_an_earlier_run_is_not_written_over(
    finished: Path,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (finished / "adapter" / "adapter_model.safetensors").read_bytes()
    monkeypatch.chdir(workplace)
    with pytest.raises(SystemExit) as refused:
        main(["train", "recipe.yaml", "--output", str(finished)])
    assert refused.value.code == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (finished / "adapter" / "adapter_model.safetensors").read_bytes() == before
