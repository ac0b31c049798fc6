"""Verification of manipulated releases whose hashes were updated."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest

from lora_kit.evaluation.harness import LEDGER, VERDICT
from lora_kit.evaluation.ledger import Entry, read_ledger, write_ledger
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict_file import SUITES, read_verdict
from lora_kit.merging.record import MERGE_RECORD
from lora_kit.pipeline import verify
from lora_kit.releasing.card import model_card
from lora_kit.releasing.manifest import MANIFEST, Manifest, files_below
from lora_kit.runtime.errors import EvaluationError, LoraKitError, ReleaseError
from lora_kit.runtime.files import write_json
from lora_kit.runtime.hashes import file_sha256
from tests.evaluation.in_memory import judge

Tampering = Callable[[Path], None]


def rehash(release: Path) -> None:
    """Update the hashes in the manifest."""
    manifest = json.loads((release / MANIFEST).read_text())
    manifest["files"] = {name: file_sha256(release / name) for name in files_below(release)}
    write_json(release / MANIFEST, manifest)


def recard(release: Path) -> None:
    """Render the card again, and update the hashes in the manifest."""
    manifest = Manifest.model_validate(json.loads((release / MANIFEST).read_text()))
    verdict = read_verdict(release / "evaluation").verdict
    merge = json.loads((release / MERGE_RECORD).read_text())
    (release / "README.md").write_text(model_card(manifest, verdict, merge))
    rehash(release)


def edit(release: Path, name: str, change: Callable[[Any], None]) -> None:
    value = json.loads((release / name).read_text())
    change(value)
    write_json(release / name, value)


def rewrite(release: Path, name: str, old: str, new: str) -> None:
    text = (release / name).read_text()
    assert old in text, old
    (release / name).write_text(text.replace(old, new))


def flip(release: Path, name: str) -> None:
    content = bytearray((release / name).read_bytes())
    content[len(content) // 2] ^= 1
    (release / name).write_bytes(content)


def test_a_release_verifies(released: Path) -> None:
    found = verify(released)
    assert "verdict and card follow from the ledger; its verdict is PASS" in found
    assert str(len(files_below(released))) in found


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "adapter/adapter_model.safetensors",
        "tokenizer.json",
        "evaluation/report.html",
        "evaluation/ledger.parquet",
        "README.md",
    ],
)
def test_a_flipped_bit_is_detected(copied: Path, name: str) -> None:
    flip(copied, name)
    with pytest.raises(ReleaseError, match=f"changed: {name}") as caught:
        verify(copied)
    assert caught.value.status == 3


def test_missing_and_new_files_are_all_reported_at_once(copied: Path) -> None:
    (copied / "config.json").unlink()
    (copied / "modeling.py").write_text("print()")
    (copied / "evaluation" / ".hidden").write_text("")
    with pytest.raises(ReleaseError) as caught:
        verify(copied)
    for part in (
        "missing: config.json",
        "not in the manifest: modeling.py",
        "not in the manifest: evaluation/.hidden",
    ):
        assert part in str(caught.value)


def test_links_are_detected(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (copied / "extra").symlink_to(tmp_path / "elsewhere")
    (copied / "config.json").rename(tmp_path / "config.json")
    (copied / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(ReleaseError) as caught:
        verify(copied)
    assert "not in the manifest: extra" in str(caught.value)
    assert "not a regular file: config.json" in str(caught.value)


def better_value(release: Path) -> None:
    def change(verdict: Any) -> None:
        verdict["suites"][0]["tasks"][0]["adapter"] -= 1

    edit(release, f"evaluation/{VERDICT}", change)


def better_ledger(release: Path) -> None:
    """Improve one score by 0.01."""
    path = release / "evaluation" / LEDGER
    rows = read_ledger(path)
    first = next(n for n, row in enumerate(rows) if row.arm == "merged")
    values = {**rows[first].to_row(), "score": (rows[first].score or 0) - 0.01}
    write_ledger(path, [*rows[:first], Entry.from_row(values), *rows[first + 1 :]])


def lost_row(release: Path) -> None:
    path = release / "evaluation" / LEDGER
    write_ledger(path, read_ledger(path)[:-1])


def wider_margin(release: Path) -> None:
    def change(suites: Any) -> None:
        suites[1]["tasks"][0]["margin"] = 30

    edit(release, f"evaluation/{SUITES}", change)


@pytest.mark.parametrize("change", [better_value, better_ledger, lost_row, wider_margin])
@pytest.mark.parametrize("update", [rehash, recard])
def test_values_that_do_not_follow_from_the_ledger_are_detected(
    copied: Path, change: Tampering, update: Tampering
) -> None:
    change(copied)
    update(copied)
    with pytest.raises(LoraKitError, match=r"does not follow from|not the suites|same items"):
        verify(copied)


def rejudge(release: Path) -> None:
    """Compute the verdict again from the ledger."""
    evaluation = release / "evaluation"
    suites = [Suite.model_validate(s) for s in json.loads((evaluation / SUITES).read_text())]
    verdict_values = judge(read_ledger(evaluation / LEDGER), suites).to_dict()
    edit(release, f"evaluation/{VERDICT}", lambda verdict: verdict.update(verdict_values))


def test_a_release_without_results_of_the_merged_model_is_refused(copied: Path) -> None:
    path = copied / "evaluation" / LEDGER
    write_ledger(path, [row for row in read_ledger(path) if row.arm != "merged"])
    rejudge(copied)
    rehash(copied)
    with pytest.raises(ReleaseError, match="merged model was not evaluated on every task"):
        verify(copied)


def test_a_consistent_ledger_and_verdict_must_match_the_card(
    copied: Path,
) -> None:
    """Everything except the card is updated."""
    better_ledger(copied)
    rejudge(copied)
    rehash(copied)
    with pytest.raises(ReleaseError, match=r"README\.md: differs from the card"):
        verify(copied)


CARD_EDITS = {
    "a value in model-index": ("value: ", "value: 1"),
    "an interval in model-index": ("low: ", "low: 1"),
    "the licence": ("license: unknown", "license: mit"),
    "a value in the table": ("| +0.", "| +1."),
    "a line of the limits": ("- Only the tasks above were measured.", "- All was measured."),
    "a new paragraph": ("## Use", "Better than all others.\n\n## Use"),
    "a comment": ("## Use", "<!-- -->\n## Use"),
}


@pytest.mark.parametrize("edited", CARD_EDITS)
def test_an_edited_card_is_detected(copied: Path, edited: str) -> None:
    rewrite(copied, "README.md", *CARD_EDITS[edited])
    rehash(copied)
    with pytest.raises(ReleaseError, match=r"README\.md: differs from the card"):
        verify(copied)


MANIFEST_EDITS: dict[str, Callable[[Any], None]] = {
    "released_with": lambda manifest: manifest["released_with"].update(torch="9.9"),
    "started": lambda manifest: manifest["training"].update(started="1999-01-01T00:00:00+00:00"),
    "rows": lambda manifest: manifest["data"]["sources"].update(chats=9_999),
    "a new key": lambda manifest: manifest["training"].update(audited=True),
}


@pytest.mark.parametrize("edited", MANIFEST_EDITS)
def test_an_edited_manifest_contradicts_its_card(copied: Path, edited: str) -> None:
    """No hash needs an update, since the manifest does not list itself."""
    edit(copied, MANIFEST, MANIFEST_EDITS[edited])
    with pytest.raises(ReleaseError, match=r"README\.md: differs from the card of this manifest"):
        verify(copied)


def undecided(release: Path) -> None:
    edit(release, MANIFEST, lambda manifest: manifest.update(decision="INCONCLUSIVE"))


def accepted(release: Path) -> None:
    acceptance = {"decision": "INCONCLUSIVE", "reason": "so", "tasks": []}
    edit(release, MANIFEST, lambda manifest: manifest.update(acceptance=acceptance))


def other_backbone(release: Path) -> None:
    edit(release, MANIFEST, lambda manifest: manifest["backbone"].update(weights="0" * 64))


def other_seed(release: Path) -> None:
    edit(release, MANIFEST, lambda manifest: manifest["seeds"].update(recipe=7))


def other_recipe(release: Path) -> None:
    edit(release, MANIFEST, lambda m: m["recipe"]["training"].update(learning_rate=1.0))


def other_recipe_file(release: Path) -> None:
    rewrite(release, "recipe.yaml", "learning_rate: 0.01", "learning_rate: 0.5")


def other_licence(release: Path) -> None:
    def change(manifest: Any) -> None:
        next(w for w in manifest["works"] if w["used"] == "train")["license"] = "MIT"

    edit(release, MANIFEST, change)


def other_counts(release: Path) -> None:
    edit(release, MANIFEST, lambda manifest: manifest["results"]["rows"].update(merged=9_999))


def other_adapter(release: Path) -> None:
    edit(release, "adapter/adapter_config.json", lambda config: config.update(lora_alpha=64))


def other_weights(release: Path) -> None:
    flip(release, "model.safetensors")


def other_weights_in_the_record(release: Path) -> None:
    flip(release, "model.safetensors")
    digest = file_sha256(release / "model.safetensors")
    edit(release, MERGE_RECORD, lambda m: m["files"].update({"model.safetensors": digest}))


def not_verified(release: Path) -> None:
    edit(release, MERGE_RECORD, lambda merge: merge["verification"].update(passed=False))


def broken(release: Path) -> None:
    """Record a failed comparison as passed."""
    values = {"mean_kl": 3.0, "top1_agreement": 0.01, "reasons": ["broken"], "passed": True}
    edit(release, MERGE_RECORD, lambda merge: merge["verification"].update(values))


def other_distance(release: Path) -> None:
    edit(release, MERGE_RECORD, lambda merge: merge["verification"].pop("positions"))


def other_dtype(release: Path) -> None:
    edit(release, MERGE_RECORD, lambda merge: merge.update(dtype="float16"))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (other_dtype, "dtype is float16, but config.json has float32"),
        (undecided, "decision: differs from the verdict's PASS .got INCONCLUSIVE"),
        (accepted, "the accepted tasks are not the undecided tasks"),
        (other_backbone, "backbone differs from that of its own parts"),
        (other_seed, "seed differs from the recipe's"),
        (other_recipe, "recipe differs from recipe.yaml"),
        (other_recipe_file, "recipe differs from recipe.yaml"),
        (other_licence, "licences differ from those that the recipe states"),
        (other_counts, "number of results differs from the ledger's"),
        (other_adapter, "adapter differs from that of adapter/"),
        (other_weights, "merged files differ from those of merge.json"),
        (other_weights_in_the_record, "the verdict measured other merged files"),
        (not_verified, "merged files differ from what was measured"),
        (broken, "what was measured: broken\n.*same at 1.0% of.*\n.*distance is 3 nats"),
        (other_distance, "cannot be read"),
    ],
)
def test_contradictory_files_are_detected(copied: Path, change: Tampering, part: str) -> None:
    change(copied)
    try:
        recard(copied)
    except jinja2.UndefinedError:
        rehash(copied)
    with pytest.raises(ReleaseError, match=part):
        verify(copied)


@pytest.mark.parametrize(
    "name", ["LICENSE", "custom_generate/generate.py", ".gitattributes", "merged/config.json"]
)
def test_an_unknown_file_in_the_manifest_is_detected(copied: Path, name: str) -> None:
    (copied / name).parent.mkdir(exist_ok=True)
    (copied / name).write_text("")
    recard(copied)
    with pytest.raises(ReleaseError, match=f"not part of a release: {name}"):
        verify(copied)


@pytest.mark.parametrize(
    ("text", "part", "status"),
    [
        ("[]", "expected a JSON object", 3),
        ("{", "cannot be read", 3),
        ('{"files": ["a"]}', "files: not a list of files with hashes", 3),
        ('{"files": {}, "format": 2, "released_with": {"lora-kit": "0.1"}}', "lora-kit 0.1", 2),
        ('{"files": {}, "format": 1, "versions": {"lora-kit": "0.0.9"}}', "lora-kit 0.0.9", 2),
        ('{"files": {}, "format": 5}', "name: Field required", 3),
    ],
)
def test_an_invalid_manifest_is_refused(tmp_path: Path, text: str, part: str, status: int) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ReleaseError, match=part) as caught:
        verify(tmp_path)
    assert caught.value.status == status


def test_metadata_of_the_hub_is_allowed_and_other_files_are_not(copied: Path) -> None:
    folder = copied / ".cache" / "huggingface"
    (folder / "download" / "adapter").mkdir(parents=True)
    (folder / ".gitignore").write_text("*")
    (folder / "download" / "config.json.metadata").write_text("x")
    (folder / "download" / "adapter" / "adapter_config.json.lock").write_text("")
    attributes = copied / ".gitattributes"
    attributes.write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    verify(copied)
    (folder / "download" / "evil.py.metadata").write_text("x")
    attributes.write_text("*.py filter=run-this\n")
    with pytest.raises(ReleaseError) as caught:
        verify(copied)
    assert "not in the manifest: .gitattributes" in str(caught.value)
    assert "evil.py.metadata" in str(caught.value)


def test_a_run_verifies_against_its_ledger(run_copy: Path) -> None:
    assert "PASS, follows from the ledger" in verify(run_copy)
    better_value(run_copy)
    with pytest.raises(EvaluationError, match="does not follow"):
        verify(run_copy)
