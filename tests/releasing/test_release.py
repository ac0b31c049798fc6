import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_kit.evaluation.harness import LEDGER, VERDICT
from lora_kit.evaluation.ledger import Entry, read_ledger, write_ledger
from lora_kit.merging.record import MERGE_RECORD, merged_identity
from lora_kit.pipeline import evaluate, release, run, verify
from lora_kit.releasing.acceptance import Acceptance
from lora_kit.releasing.manifest import MANIFEST, Manifest
from lora_kit.releasing.release import show_release
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import ReleaseError
from lora_kit.runtime.files import write_json
from lora_kit.runtime.hashes import file_sha256


def manifest_of(directory: Path) -> Manifest:
    return Manifest.model_validate(json.loads((directory / MANIFEST).read_text()))


def test_transformers_and_peft_reproduce_the_release(finished: Path, released: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(released)
    merged = AutoModelForCausalLM.from_pretrained(released, use_safetensors=True)
    base_model = json.loads((finished / "adapter" / "backbone.json").read_text())["model"]
    base = AutoModelForCausalLM.from_pretrained(base_model)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 7 plus 7?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        of_base = base(**prompt).logits
        of_merged = merged(**prompt).logits
        of_adapter = PeftModel.from_pretrained(base, str(released / "adapter"))(**prompt).logits
    assert torch.allclose(of_merged, of_adapter, atol=1e-4)
    assert not torch.allclose(of_merged, of_base, atol=1e-2)
    stops = merged.generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (
        stops if isinstance(stops, list) else [stops]
    )


def test_the_manifest_states_the_provenance(finished: Path, released: Path) -> None:
    manifest, record = manifest_of(released), RunDirectory(finished).load_record()
    assert manifest.backbone == record["backbone"]
    assert set(manifest.backbone) == {
        *("weights", "config", "tokenizer", "quantization", "dtype", "digest"),
    }
    assert manifest.data == record["data"]
    assert manifest.resolved_recipe == RunDirectory(finished).load_recipe()
    assert manifest.seeds == {"recipe": 0, "sums": 0, "prose": 0}
    assert manifest.training["versions"]["torch"] == torch.__version__
    assert manifest.training["machine"]["cores"] >= 1
    rows = read_ledger(released / manifest.results["ledger"])
    # 20 items of prose, and the first of two looks at 30 answers.
    assert manifest.results["rows"]["merged"] == sum(row.arm == "merged" for row in rows) == 35


@pytest.mark.slow  # trains, merges and evaluates
def test_the_summary_states_directory_size_and_notes(finished: Path, tmp_path: Path) -> None:
    made = release(finished, tmp_path / "out")
    text = show_release(made)
    size = sum(file.stat().st_size for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert made.bytes == size
    assert f"{tmp_path / 'out'} ({made.files} files, {size / 1e6:.1f} MB)" in text
    assert "Licence unknown: the licence of the base model" in text
    assert "Note: recipe.yaml names folders" in text
    assert "data.train.0.source" in text
    assert "lora-kit verify" in text
    assert made.to_dict()["licences"][0]["kind"] == "unknown"


@pytest.mark.slow
def test_a_whole_run_evaluates_the_merged_model_though_the_recipe_does_not_name_it(
    finished: Path, tmp_path: Path
) -> None:
    recipe = RunDirectory(finished).load_recipe()
    assert recipe.evaluation.arms == ["base", "adapter"]
    outcome = run(recipe, tmp_path / "whole")
    assert (outcome.status, outcome.verdict.merged) == (0, "PASS"), outcome.refusal
    assert outcome.release == tmp_path / "whole" / "release"
    verify(outcome.release)


def test_an_output_directory_with_other_files_is_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "thing").write_text("mine")
    with pytest.raises(ReleaseError, match="not empty") as caught:
        release(finished, tmp_path)
    assert caught.value.status == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_a_release_is_overwritten_only_for_the_same_adapter(finished: Path, copied: Path) -> None:
    (copied / "config.json").unlink()
    release(finished, copied)
    verify(copied)
    manifest = json.loads((copied / MANIFEST).read_text())
    write_json(copied / MANIFEST, manifest | {"adapter": "0" * 64})
    with pytest.raises(ReleaseError, match="not empty"):
        release(finished, copied)


def test_a_model_that_would_not_load_is_not_released(run_copy: Path) -> None:
    """The files match the merge record, but would not load."""
    weights = run_copy / "merged" / "pytorch_model.bin"
    weights.write_bytes(b"")
    record, verdict = run_copy / "merged" / MERGE_RECORD, run_copy / "evaluation" / VERDICT
    merge = json.loads(record.read_text())
    merge["files"][weights.name] = file_sha256(weights)
    write_json(record, merge)
    measured = {"merged_models": {"merged": merged_identity(merge["files"])}}
    write_json(verdict, json.loads(verdict.read_text()) | measured)
    with pytest.raises(ReleaseError, match=r"pytorch_model\.bin: may contain code"):
        release(run_copy)
    assert not (run_copy / "release").exists()


@pytest.mark.parametrize("name", ["custom_generate/generate.py", "LICENSE", "adapter/x.json"])
def test_files_added_to_the_merge_are_refused(run_copy: Path, name: str) -> None:
    place = run_copy / "merged" / name
    place.parent.mkdir(exist_ok=True)
    place.write_text("{}")
    with pytest.raises(ReleaseError, match=rf"not verified \(got {name.split('/')[0]}\)") as caught:
        release(run_copy)
    assert caught.value.status == 3
    assert not (run_copy / "release").exists()


def test_only_licences_may_be_edited_in_the_recipe_of_a_finished_run(run_copy: Path) -> None:
    recipe = run_copy / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("license: CC-BY-4.0", "license: MIT"))
    made = release(run_copy)
    assert "| MIT |" in (made.directory / "README.md").read_text()
    shutil.rmtree(made.directory)
    recipe.write_text(text.replace("learning_rate: 0.01", "learning_rate: 0.5"))
    with pytest.raises(ReleaseError, match="differs from the recipe that was trained"):
        release(run_copy)
    assert not made.directory.exists()


def test_an_alias_is_replaced_by_the_hub_id_of_the_base(finished: Path, run_copy: Path) -> None:
    path = run_copy / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    write_json(path, config | {"base_model_name_or_path": "smollm2-135m-instruct"})
    written = release(run_copy).directory / "adapter" / "adapter_config.json"
    named = json.loads(written.read_text())["base_model_name_or_path"]
    assert named == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_another_merge_after_the_evaluation_is_refused(run_copy: Path) -> None:
    record = run_copy / "merged" / MERGE_RECORD
    merge = json.loads(record.read_text())
    (run_copy / "merged" / "config.json").unlink()
    del merge["files"]["config.json"]
    write_json(record, merge)
    with pytest.raises(ReleaseError, match="another merge was evaluated"):
        release(run_copy)


def test_the_merged_model_with_the_better_verdict_is_released(run_copy: Path) -> None:
    other = Path(shutil.copytree(run_copy / "merged", run_copy / "merged-original"))
    record = json.loads((other / MERGE_RECORD).read_text())
    write_json(other / MERGE_RECORD, record | {"into": "of the other one"})
    evaluate(run_copy, arms=["merged", "merged-original"])
    path = run_copy / "evaluation" / LEDGER
    rows = [
        Entry(
            **{**row.to_row(), "score": (row.score or 0) + 5}
            if row.arm == "merged"
            else row.to_row()
        )
        for row in read_ledger(path)
    ]
    write_ledger(path, rows)
    verdict = evaluate(run_copy, arms=["merged", "merged-original"]).verdict
    assert verdict.ships == "merged-original"
    assert verdict.selection is not None
    assert verdict.selection.reason == ""
    made = release(run_copy)
    assert json.loads((made.directory / MERGE_RECORD).read_text())["into"] == "of the other one"
    card = (made.directory / "README.md").read_text()
    assert "this release contains `merged-original`" in card
    assert "| merged | sums/loss | -4." in card
    assert (
        "`merged-original`. Of several merged models, merged-original was selected on half A"
        in card
    )
    assert "The merged model's values are of half B, which the selection did not use" in card
    verify(made.directory)


def undecided(run: Path) -> None:
    """Change the scores of the merged model: half of them better, half worse."""
    path = run / "evaluation" / LEDGER
    rows = read_ledger(path)
    base = {(r.task, r.item): r.score for r in rows if r.arm == "base"}

    def changed(number: int, row: Entry) -> Entry:
        values: dict[str, Any] = row.to_row()
        if row.arm == "merged" and row.task == "loss":
            values["score"] = (base[row.task, row.item] or 0) + (1.0 if number % 2 else -1.1)
        return Entry(**values)

    write_ledger(path, [changed(number, row) for number, row in enumerate(rows)])
    # No scores are missing, so only the verdict is computed again.
    evaluate(run, arms=["merged"])


def test_an_accepted_inconclusive_run_is_released_and_verifies(
    run_copy: Path,
) -> None:
    undecided(run_copy)
    with pytest.raises(ReleaseError, match="sums/loss, merged: INCONCLUSIVE") as caught:
        release(run_copy)
    assert caught.value.status == 4
    made = release(run_copy, acceptance=Acceptance(reason="a first look"))
    assert "accepted: a first look" in verify(made.directory)
    card = (made.directory / "README.md").read_text()
    assert "Reason given: a first look" in card.split("## Results")[0]
    manifest = json.loads((made.directory / MANIFEST).read_text())
    assert manifest["acceptance"]["tasks"] == ["sums/loss, merged"]
    for acceptance in (None, manifest["acceptance"] | {"tasks": []}):
        write_json(made.directory / MANIFEST, manifest | {"acceptance": acceptance})
        with pytest.raises(
            ReleaseError, match=r"cannot have been released|not the undecided tasks"
        ):
            verify(made.directory)
    write_json(
        made.directory / MANIFEST,
        manifest | {"acceptance": manifest["acceptance"] | {"reason": " "}},
    )
    with pytest.raises(ReleaseError, match=r"acceptance\.reason"):
        verify(made.directory)
