"""A merge passed if its figures say so, not if its record does."""

from typing import Any

import pytest

from lora_kit.merging.limits import KEPT
from lora_kit.releasing.figures import against_passing

FOUND = {
    "passed": True,
    "reasons": [],
    "top1_agreement": 0.99,
    "mean_kl": 0.02,
    "control_mean_kl": 0.5,
    "modules": 4,
    "computed_in": "float32",
    "least_kept": 0.999,
    "median_kept": 1.0,
    "most_kept": 1.001,
}


def against(dtype: str = "float32", quantization: str = "nf4", **figures: Any) -> list[str]:
    merge = {"into": "dequantized", "dtype": dtype, "verification": FOUND | figures}
    return against_passing(merge, quantization)


NOT_TRIED = dict.fromkeys(("least_kept", "median_kept", "most_kept"))


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"top1_agreement": 0.97},
        {"mean_kl": 0.025},
        {"mean_kl": 1e-6, "control_mean_kl": 0.0},
        {"mean_kl": 4e-3, "control_mean_kl": 0.01, "computed_in": "bfloat16"},
        {"dtype": "bfloat16", "least_kept": 0.6, "most_kept": 1.4},
        {"modules": 0, **NOT_TRIED},
        {"modules": 0, "least_kept": 1.0, "median_kept": 1.0, "most_kept": 1.0},
    ],
)
def test_figures_within_the_limits_pass(figures: dict[str, Any]) -> None:
    assert against(**figures) == []


@pytest.mark.parametrize(
    ("figures", "part"),
    [
        ({"passed": False}, "did not pass"),
        ({"passed": "yes"}, "did not pass"),
        ({"reasons": ["broken"]}, "broken"),
        ({"top1_agreement": 0.96}, "same at 96.0%"),
        ({"computed_in": "float8"}, "cannot be read: KeyError"),
        ({"top1_agreement": float("nan")}, "same at nan%"),
        ({"mean_kl": 0.026}, "distance is 0.026 nats a token, 0.025 are allowed"),
        ({"mean_kl": 2e-6, "control_mean_kl": 0.0}, "distance is 2e-06"),
        ({"mean_kl": 3.0, "control_mean_kl": float("inf")}, "distance is 3"),
        ({"least_kept": 0.98}, "least_kept is 0.98"),
        ({"dtype": "bfloat16", "median_kept": 0.8}, "median_kept is 0.80"),
        ({"dtype": "bfloat16", "most_kept": 1.6}, "most_kept is 1.60"),
        (NOT_TRIED, "though 4 modules were tried"),
        ({"dtype": "int3"}, "cannot be read: KeyError: 'int3'"),
        ({"mean_kl": None}, "cannot be read: TypeError"),
        ({"mean_kl": "small"}, "cannot be read: ValueError"),
    ],
)
def test_a_figure_beyond_its_limit_is_told_though_the_record_says_passed(
    figures: dict[str, Any], part: str
) -> None:
    assert part in "; ".join(against(**figures))


def test_figures_that_are_not_there_are_told() -> None:
    merge = {"into": "dequantized", "dtype": "float32", "verification": {"passed": True}}
    assert against_passing(merge, "none") == ["its figures cannot be read: KeyError: 'computed_in'"]


def test_layers_of_eight_bits_are_held_to_their_own_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(KEPT, "int8", (0.9, 1.1))
    assert against(quantization="int8", least_kept=0.95) == []
    assert against(quantization="nf4", least_kept=0.95) == [
        "least_kept is 0.95, allowed are 0.99 to 1.01"
    ]
