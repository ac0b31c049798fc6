import json
from pathlib import Path
from typing import Any

import pytest

from lora_kit.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_sha256
from lora_kit.errors import EvaluationError, ReleaseError
from lora_kit.evaluation.harness import LEDGER, SUITES, VERDICT
from lora_kit.evaluation.judge import judge
from lora_kit.evaluation.ledger import Entry, write_ledger
from lora_kit.evaluation.suite import Suite
from lora_kit.files import write_json
from lora_kit.gguf import file_sha256
from lora_kit.recipe import Recipe
from lora_kit.releasing.card import model_card
from lora_kit.releasing.gate import MERGE_RECORD, clear
from lora_kit.releasing.manifest import verify_manifest, write_manifest
from lora_kit.run import RunDirectory

SUITE = Suite.model_validate(
    {
        "name": "better",
        "role": "gain",
        "tasks": [{"name": "loss", "kind": "loss", "source": "x"}],
    }
)


def evaluated(root: Path, after: list[float], **merge: Any) -> RunDirectory:
    """A run directory as evaluation and merging leave it."""
    run = RunDirectory(root)
    rows = [
        Entry(arm, "better", "loss", f"i{n}", f"c{n}", score, "", "", "", 1, 0.1)
        for arm, scores in (("base", [3.0] * len(after)), ("adapter", after))
        for n, score in enumerate(scores)
    ]
    write_ledger(run.evaluation / LEDGER, rows)
    write_json(run.evaluation / SUITES, [SUITE.model_dump(mode="json")])
    run.adapter.mkdir()
    (run.adapter / ADAPTER_WEIGHTS).write_bytes(b"adapter")
    write_json(run.adapter / ADAPTER_CONFIG, {"r": 4})
    adapter = adapter_sha256(run.adapter)
    digests = {"better": SUITE.digest}
    lineage = {"backbone": "b", "adapter": adapter, "suite_digests": digests}
    write_json(run.evaluation / VERDICT, judge(rows, [SUITE]).to_dict() | lineage)
    run.update_record(suites=digests)
    run.merged.mkdir()
    weights = run.merged / "model.safetensors"
    weights.write_bytes(b"merged")
    verification = {
        "passed": True,
        "positions": 9,
        "top1_agreement": 1.0,
        "mean_kl": 1e-7,
        "control_mean_kl": 0.5,
    }
    record = {
        "backbone": "b",
        "adapter": adapter,
        "files": {weights.name: file_sha256(weights)},
        "into": "dequantized",
        "dtype": "float32",
        "compared_on": "held-out rows",
    } | merge
    write_json(run.merged / MERGE_RECORD, {"verification": verification} | record)
    return run


BETTER = [2.0, 2.1, 2.2] * 10
WORSE = [3.5, 3.6, 3.7] * 10
UNDECIDED = [2.0, 4.0] * 15


def test_a_run_that_passed_is_cleared(tmp_path: Path) -> None:
    assert clear(evaluated(tmp_path, BETTER)).verdict["decision"] == "PASS"


@pytest.mark.parametrize(
    ("after", "status", "part"),
    [(WORSE, 3, "better/loss: FAIL"), (UNDECIDED, 4, "better/loss: INCONCLUSIVE")],
)
def test_a_run_that_did_not_pass_is_refused_with_its_status(
    tmp_path: Path, after: list[float], status: int, part: str
) -> None:
    with pytest.raises(ReleaseError, match=part) as caught:
        clear(evaluated(tmp_path, after))
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("merge", "part"),
    [
        ({"verification": {"passed": False}}, "not what was measured"),
        ({"backbone": "another"}, "different backbones"),
        ({"adapter": "another"}, "merged files are of another adapter"),
        ({"files": {"model.safetensors": "0"}}, "changed since they were compared"),
        ({"files": {"gone.safetensors": "0"}}, "changed since they were compared"),
    ],
)
def test_files_that_are_not_what_was_measured_are_refused(
    tmp_path: Path, merge: dict[str, Any], part: str
) -> None:
    with pytest.raises(ReleaseError, match=part) as caught:
        clear(evaluated(tmp_path, BETTER, **merge))
    assert caught.value.status == 3


def test_a_verdict_of_another_adapter_or_on_other_suites_opens_nothing(tmp_path: Path) -> None:
    run = evaluated(tmp_path, BETTER)
    run.update_record(suites={"better": SUITE.digest, "keep": "0"})
    with pytest.raises(ReleaseError, match="suites that were set before the training"):
        clear(run)
    run.update_record(suites={"better": SUITE.digest})
    clear(run)
    (run.adapter / ADAPTER_WEIGHTS).write_bytes(b"another adapter")
    with pytest.raises(ReleaseError, match="verdict is of another adapter"):
        clear(run)


def test_a_run_that_was_not_merged_says_what_to_do(tmp_path: Path) -> None:
    run = evaluated(tmp_path, BETTER)
    (run.merged / MERGE_RECORD).unlink()
    with pytest.raises(ReleaseError, match="lora-kit merge") as caught:
        clear(run)
    assert caught.value.status == 2


def test_a_run_that_was_not_evaluated_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="evaluate the adapter first"):
        clear(RunDirectory(tmp_path))


def test_the_card_has_the_verdicts_figures_and_metadata_that_the_hub_reads(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    run = evaluated(tmp_path, BETTER)
    counts = {"used": 3, "tokens": 30, "supervised_tokens": 9, "truncated": 0, "dropped": 0}
    run.update_record(data=counts)
    card = model_card(Recipe.load("quickstart"), clear(run), run)
    parsed = ModelCard(card)
    assert parsed.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert parsed.data.eval_results[0].metric_value == pytest.approx(2.1)
    assert "| better | gain | loss (nats/token) | 3 | 2.1 | +0.9000 |" in card
    assert "{{" not in card
    assert str(tmp_path) not in card


def test_a_manifest_finds_every_difference(tmp_path: Path) -> None:
    run = evaluated(tmp_path, BETTER)
    write_manifest(tmp_path, {"name": "x"})
    assert verify_manifest(tmp_path) == 8
    ledger = run.evaluation / LEDGER
    content = ledger.read_bytes()
    ledger.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ReleaseError, match=r"changed: evaluation/ledger\.parquet"):
        verify_manifest(tmp_path)


def test_a_manifest_that_was_made_to_fit_still_has_to_follow_from_the_ledger(
    tmp_path: Path,
) -> None:
    run = evaluated(tmp_path, WORSE)
    verdict = json.loads((run.evaluation / VERDICT).read_text())
    verdict["decision"] = "PASS"
    write_json(run.evaluation / VERDICT, verdict)
    write_manifest(tmp_path, {"name": "x"})
    with pytest.raises(EvaluationError, match="does not follow"):
        verify_manifest(tmp_path)


def test_a_directory_that_never_passed_is_no_release(tmp_path: Path) -> None:
    evaluated(tmp_path, WORSE)
    write_manifest(tmp_path, {"name": "x"})
    with pytest.raises(ReleaseError, match="its verdict is FAIL"):
        verify_manifest(tmp_path)


def test_nothing_hides_behind_a_link(tmp_path: Path) -> None:
    run = evaluated(tmp_path / "release", BETTER)
    write_manifest(run.root, {"name": "x"})
    (tmp_path / "elsewhere").mkdir()
    (run.root / "extra").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ReleaseError, match="not in the manifest: extra"):
        verify_manifest(run.root)


def test_what_is_no_manifest_is_told(tmp_path: Path) -> None:
    for text in ("[]", "{", '{"files": ["a"]}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ReleaseError, match=r"manifest\.json"):
            verify_manifest(tmp_path)
