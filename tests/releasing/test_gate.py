from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_kit.adapter.attach import ADAPTER_WEIGHTS
from lora_kit.merging.record import MERGE_RECORD
from lora_kit.releasing.acceptance import Acceptance, accepted
from lora_kit.releasing.gate import clear
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import EvaluationError, ReleaseError
from lora_kit.runtime.files import write_json
from tests.releasing.synthetic import BETTER, SUITE, UNDECIDED, WORSE, evaluated

ACCEPTED = Acceptance(reason="a first look")


def test_a_run_that_passed_is_cleared(tmp_path: Path) -> None:
    cleared = clear(evaluated(tmp_path, BETTER))
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
def test_what_did_not_pass_as_adapter_and_as_merged_model_is_refused_with_its_status(
    tmp_path: Path, after: list[float], merged: list[float] | None, status: int, parts: list[str]
) -> None:
    with pytest.raises(ReleaseError) as caught:
        clear(evaluated(tmp_path, after, merged))
    assert caught.value.status == status
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_all_reasons_are_told_at_once(tmp_path: Path) -> None:
    run = evaluated(tmp_path, WORSE, None, verification={"passed": False}, backbone="another")
    run.update_record(suites={})
    with pytest.raises(ReleaseError) as caught:
        clear(run)
    for part in (
        "better/loss: FAIL",
        "--arm merged",
        "not what was measured",
        "different backbones",
        "suites that were set before the training",
    ):
        assert part in str(caught.value), part


def test_what_is_inconclusive_passes_with_a_reason_and_names_what_is_open(tmp_path: Path) -> None:
    cleared = clear(evaluated(tmp_path, BETTER, UNDECIDED), ACCEPTED)
    assert cleared.decision == "INCONCLUSIVE"
    assert cleared.acceptance == Acceptance(reason="a first look", tasks=("better/loss, merged",))


@pytest.mark.parametrize(
    ("after", "merged", "part"),
    [(WORSE, WORSE, "FAIL"), (UNDECIDED, WORSE, "merged: FAIL"), (UNDECIDED, None, "--arm merged")],
)
def test_no_reason_lets_a_fail_or_an_unmeasured_model_through(
    tmp_path: Path, after: list[float], merged: list[float] | None, part: str
) -> None:
    with pytest.raises(ReleaseError, match=part):
        clear(evaluated(tmp_path, after, merged), ACCEPTED)


def test_no_reason_mends_a_broken_lineage(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="different backbones") as caught:
        clear(evaluated(tmp_path, UNDECIDED, backbone="another"), ACCEPTED)
    assert caught.value.status == 3


def test_what_passed_needs_no_acceptance_and_has_none(tmp_path: Path) -> None:
    assert clear(evaluated(tmp_path, BETTER), ACCEPTED).acceptance is None


@pytest.mark.parametrize(
    ("accept", "reason", "part"),
    [
        ("inconclusive", None, "say why"),
        ("inconclusive", "  ", "say why"),
        ("fail", "I want it", "What failed is not released"),
        (None, "because", "goes with --accept"),
    ],
)
def test_an_acceptance_without_a_reason_or_of_a_fail_is_none(
    accept: str | None, reason: str | None, part: str
) -> None:
    with pytest.raises(ReleaseError, match=part) as caught:
        accepted(accept, reason)
    assert caught.value.status == 2


def test_an_acceptance_is_what_was_said() -> None:
    assert accepted(None, None) is None
    assert accepted("INCONCLUSIVE", " so ") == Acceptance(reason="so")


@pytest.mark.parametrize(
    ("merge", "part"),
    [
        ({"verification": {"passed": False}}, "not what was measured"),
        ({"backbone": "another"}, "different backbones"),
        ({"adapter": "another"}, "merged files are of another adapter"),
        ({"files": {"model.safetensors": "0"}}, "changed since they were compared"),
        ({"files": {"gone.safetensors": "0"}}, "changed since they were compared"),
        ({"files": {"../adapter/adapter_config.json": "0"}}, "changed since they were compared"),
        ({"files": {}}, "holds what nobody compared: model.safetensors"),
        ({"files": {}}, "another merge was evaluated"),
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


@pytest.mark.parametrize("field", ["learning_rate", "epochs"])
def test_a_recipe_that_was_edited_after_the_training_opens_nothing(
    tmp_path: Path, field: str
) -> None:
    run = evaluated(tmp_path, BETTER)
    recipe = yaml.safe_load(run.recipe.read_text())
    recipe["training"][field] = 3
    run.recipe.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ReleaseError, match="not the recipe that the run began with") as caught:
        clear(run)
    assert caught.value.status == 3


def test_a_licence_is_stated_after_the_training(tmp_path: Path) -> None:
    run = evaluated(tmp_path, BETTER)
    recipe = yaml.safe_load(run.recipe.read_text())
    stated = [recipe["backbone"], *recipe["data"]["train"]]
    for one in stated:
        one["license"] = "MIT"
    run.recipe.write_text(yaml.safe_dump(recipe))
    clear(run)
    recipe["data"]["train"][0]["columns"]["license"] = "MIT"
    run.recipe.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ReleaseError, match="not the recipe"):
        clear(run)


def test_a_run_that_does_not_say_its_recipe_is_of_an_earlier_version(tmp_path: Path) -> None:
    run = evaluated(tmp_path, BETTER)
    run.update_record(recipe_sha256=None)
    with pytest.raises(ReleaseError, match=r"run\.json: does not say which recipe") as caught:
        clear(run)
    assert caught.value.status == 2


def test_a_run_that_was_not_merged_says_what_to_do(tmp_path: Path) -> None:
    run = evaluated(tmp_path, BETTER)
    (run.merged / MERGE_RECORD).unlink()
    with pytest.raises(ReleaseError, match="lora-kit merge") as caught:
        clear(run)
    assert caught.value.status == 2


def test_a_merge_of_another_version_says_what_to_do(tmp_path: Path) -> None:
    run = evaluated(tmp_path, BETTER)
    write_json(run.merged / MERGE_RECORD, {"files": {}})
    with pytest.raises(ReleaseError, match="merge again"):
        clear(run)


def test_a_run_that_was_not_evaluated_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="evaluate the adapter first"):
        clear(RunDirectory(tmp_path))
