from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_kit.adapter.saved import ADAPTER_WEIGHTS
from lora_kit.merging.record import MERGE_RECORD
from lora_kit.releasing.acceptance import Acceptance, parse_acceptance
from lora_kit.releasing.gate import clear_for_release
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import EvaluationError, ReleaseError
from lora_kit.runtime.files import write_json
from tests.releasing.synthetic import BETTER, SUITE, UNDECIDED, WORSE, evaluated

ACCEPTED = Acceptance(reason="a first look")


def test_a_run_that_passed_is_cleared(tmp_path: Path) -> None:
    cleared = clear_for_release(evaluated(tmp_path, BETTER))
    assert (cleared.decision, cleared.acceptance) == ("PASS", None)


@pytest.mark.parametrize(
    ("after", "merged", "status", "parts"),
    [
        (WORSE, WORSE, 3, ["better/loss: FAIL", "better/loss, merged: FAIL"]),
        (UNDECIDED, UNDECIDED, 4, ["better/loss: INCONCLUSIVE"]),
        (BETTER, WORSE, 3, ["better/loss, merged: FAIL"]),
        (BETTER, UNDECIDED, 4, ["better/loss, merged: INCONCLUSIVE"]),
        (UNDECIDED, WORSE, 3, ["better/loss: INCONCLUSIVE", "better/loss, merged: FAIL"]),
        (BETTER, None, 2, ["was not evaluated on better/loss", "--arm merged"]),
    ],
)
def test_an_adapter_or_merged_model_that_did_not_pass_is_refused_with_its_status(
    tmp_path: Path, after: list[float], merged: list[float] | None, status: int, parts: list[str]
) -> None:
    with pytest.raises(ReleaseError) as caught:
        clear_for_release(evaluated(tmp_path, after, merged))
    assert caught.value.status == status
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_all_reasons_are_reported_at_once(tmp_path: Path) -> None:
    run = evaluated(tmp_path, WORSE, None, verification={"passed": False}, backbone="another")
    run.update_record(suites={})
    with pytest.raises(ReleaseError) as caught:
        clear_for_release(run)
    for part in (
        "better/loss: FAIL",
        "--arm merged",
        "differ from what was measured",
        "another backbone than the verdict's",
        "suites differ from those fixed before training",
    ):
        assert part in str(caught.value), part


def test_an_accepted_inconclusive_verdict_passes_and_names_undecided_tasks(tmp_path: Path) -> None:
    cleared = clear_for_release(evaluated(tmp_path, BETTER, UNDECIDED), ACCEPTED)
    assert cleared.decision == "INCONCLUSIVE"
    assert cleared.acceptance == Acceptance(reason="a first look", tasks=("better/loss, merged",))


@pytest.mark.parametrize(
    ("after", "merged", "part"),
    [(WORSE, WORSE, "FAIL"), (UNDECIDED, WORSE, "merged: FAIL"), (UNDECIDED, None, "--arm merged")],
)
def test_a_fail_or_an_unmeasured_model_cannot_be_accepted(
    tmp_path: Path, after: list[float], merged: list[float] | None, part: str
) -> None:
    with pytest.raises(ReleaseError, match=part):
        clear_for_release(evaluated(tmp_path, after, merged), ACCEPTED)


def test_a_broken_lineage_cannot_be_accepted(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="another backbone than the verdict's") as caught:
        clear_for_release(evaluated(tmp_path, UNDECIDED, backbone="another"), ACCEPTED)
    assert caught.value.status == 3


def test_a_verdict_that_passed_has_no_acceptance(tmp_path: Path) -> None:
    assert clear_for_release(evaluated(tmp_path, BETTER), ACCEPTED).acceptance is None


@pytest.mark.parametrize(
    ("accept", "reason", "part"),
    [
        ("inconclusive", None, "a reason is missing"),
        ("inconclusive", "  ", "a reason is missing"),
        ("fail", "I want it", "never a FAIL"),
        (None, "because", "used only with --accept"),
    ],
)
def test_an_acceptance_without_a_reason_or_of_a_fail_is_refused(
    accept: str | None, reason: str | None, part: str
) -> None:
    with pytest.raises(ReleaseError, match=part) as caught:
        parse_acceptance(accept, reason)
    assert caught.value.status == 2


def test_an_acceptance_has_the_given_reason() -> None:
    assert parse_acceptance(None, None) is None
    assert parse_acceptance("INCONCLUSIVE", " so ") == Acceptance(reason="so")


@pytest.mark.parametrize(
    ("merge", "part"),
    [
        ({"verification": {"passed": False}}, "merged files differ from what was measured"),
        ({"backbone": "another"}, "another backbone than the verdict's"),
        ({"adapter": "another"}, "merged files come from another adapter"),
        ({"files": {"model.safetensors": "0"}}, "files changed since verification"),
        ({"files": {"gone.safetensors": "0"}}, "files changed since verification"),
        ({"files": {"../adapter/adapter_config.json": "0"}}, "files changed since verification"),
        ({"files": {}}, r"files that were not verified \(got model\.safetensors\)"),
        ({"files": {}}, "another merge was evaluated"),
    ],
)
def test_files_that_differ_from_what_was_measured_are_refused(
    tmp_path: Path, merge: dict[str, Any], part: str
) -> None:
    with pytest.raises(ReleaseError, match=part) as caught:
        clear_for_release(evaluated(tmp_path, BETTER, **merge))
    assert caught.value.status == 3


def test_a_verdict_for_another_adapter_or_other_suites_is_refused(tmp_path: Path) -> None:
    run = evaluated(tmp_path, BETTER)
    run.update_record(suites={"better": SUITE.digest, "keep": "0"})
    with pytest.raises(ReleaseError, match="suites differ from those fixed before training"):
        clear_for_release(run)
    run.update_record(suites={"better": SUITE.digest})
    clear_for_release(run)
    (run.adapter / ADAPTER_WEIGHTS).write_bytes(b"another adapter")
    with pytest.raises(ReleaseError, match="verdict is for another adapter"):
        clear_for_release(run)


@pytest.mark.parametrize("field", ["learning_rate", "epochs"])
def test_a_recipe_edited_after_training_is_refused(tmp_path: Path, field: str) -> None:
    run = evaluated(tmp_path, BETTER)
    recipe = yaml.safe_load(run.recipe.read_text())
    recipe["training"][field] = 3
    run.recipe.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ReleaseError, match="differs from the recipe that was trained") as caught:
        clear_for_release(run)
    assert caught.value.status == 3


def test_a_licence_may_be_stated_after_training(tmp_path: Path) -> None:
    run = evaluated(tmp_path, BETTER)
    recipe = yaml.safe_load(run.recipe.read_text())
    stated = [recipe["backbone"], *recipe["data"]["train"]]
    for one in stated:
        one["license"] = "MIT"
    run.recipe.write_text(yaml.safe_dump(recipe))
    clear_for_release(run)
    recipe["data"]["train"][0]["columns"]["license"] = "MIT"
    run.recipe.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ReleaseError, match="differs from the recipe that was trained"):
        clear_for_release(run)


def test_a_run_without_a_recipe_digest_is_refused(tmp_path: Path) -> None:
    run = evaluated(tmp_path, BETTER)
    run.update_record(recipe_sha256=None)
    with pytest.raises(ReleaseError, match=r"run\.json: recipe_sha256 is missing") as caught:
        clear_for_release(run)
    assert caught.value.status == 2


def test_the_error_for_a_run_that_was_not_merged_has_a_remedy(tmp_path: Path) -> None:
    run = evaluated(tmp_path, BETTER)
    (run.merged / MERGE_RECORD).unlink()
    with pytest.raises(ReleaseError, match="lora-kit merge") as caught:
        clear_for_release(run)
    assert caught.value.status == 2


def test_the_error_for_a_merge_of_another_version_has_a_remedy(tmp_path: Path) -> None:
    run = evaluated(tmp_path, BETTER)
    write_json(run.merged / MERGE_RECORD, {"files": {}})
    with pytest.raises(
        ReleaseError, match=r"written by another version .*Fix: run `lora-kit merge .*again"
    ):
        clear_for_release(run)


def test_the_error_for_a_run_that_was_not_evaluated_has_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="evaluate the adapter first"):
        clear_for_release(RunDirectory(tmp_path))
