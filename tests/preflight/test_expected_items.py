"""Items that `plan` expects to be asked until a task is decided."""

import pytest

from lora_kit.evaluation.stopping import FIXED, Stopping
from lora_kit.evaluation.suite import Suite
from lora_kit.preflight.suite_power import compute_suite_power

LOOKS = Stopping(looks=5)


def asked(role: str, stopping: Stopping = LOOKS, **fields: object) -> dict[str, int]:
    task = {"name": "quiz", "kind": "multiple_choice", "source": "general-knowledge"}
    suite = Suite.model_validate({"name": "s", "role": role, "tasks": [task | fields]})
    (power,) = compute_suite_power([suite], stopping=stopping)
    return dict(power.tasks[0].asked)


def test_fewest_are_asked_where_the_truth_is_far_from_the_margin() -> None:
    found = asked("retention", limit=400, margin=0.08)
    assert set(found) == {"no change", "a loss of the margin"}
    assert 80 < found["no change"] < 200
    assert 280 < found["a loss of the margin"] < 400
    assert asked("retention", limit=400, margin=0.05)["no change"] > found["no change"]


def test_a_gain_is_asked_by_what_is_expected() -> None:
    assert set(asked("gain", limit=400)) == {"no change"}
    found = asked("gain", limit=400, effect=0.09)
    assert found["the expected gain"] < found["no change"] < 400
    # More than the items that flip cannot be gained.
    assert set(asked("gain", limit=400, effect=0.5)) == {"no change"}


@pytest.mark.parametrize(("stopping", "limit"), [(FIXED, 400), (LOOKS, 79)])
def test_all_are_asked_at_once_without_looks(stopping: Stopping, limit: int) -> None:
    assert asked("retention", stopping, limit=limit, margin=0.08) == {}
