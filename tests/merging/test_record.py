"""A merge passed if its recorded values say so, not if its record does."""

from typing import Any

import pytest

from lora_kit.merging.record import recorded_merge_failures
from lora_kit.merging.tolerances import KEPT

VALUES = {
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


def failures(dtype: str = "float32", quantization: str = "nf4", **values: Any) -> list[str]:
    record = {"into": "dequantized", "dtype": dtype, "verification": VALUES | values}
    return recorded_merge_failures(record, quantization)


NOT_RUN = dict.fromkeys(("least_kept", "median_kept", "most_kept"))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"top1_agreement": 0.97},
        {"mean_kl": 0.025},
        {"mean_kl": 1e-6, "control_mean_kl": 0.0},
        {"mean_kl": 4e-3, "control_mean_kl": 0.01, "computed_in": "bfloat16"},
        {"dtype": "bfloat16", "least_kept": 0.6, "most_kept": 1.4},
        {"modules": 0, **NOT_RUN},
        {"modules": 0, "least_kept": 1.0, "median_kept": 1.0, "most_kept": 1.0},
    ],
)
def test_values_within_the_tolerances_pass(values: dict[str, Any]) -> None:
    assert failures(**values) == []


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"passed": False}, "did not pass"),
        ({"passed": "yes"}, "did not pass"),
        ({"reasons": ["broken"]}, "broken"),
        ({"top1_agreement": 0.96}, "same at 96.0% of the positions, 97% are required"),
        ({"computed_in": "float8"}, "cannot be read (got KeyError"),
        ({"top1_agreement": float("nan")}, "same at nan% of"),
        (
            {"mean_kl": 0.026},
            "distance is 0.026 nats a token (base without adapter: 0.5), 0.025 are allowed",
        ),
        ({"mean_kl": 2e-6, "control_mean_kl": 0.0}, "distance is 2e-06"),
        ({"mean_kl": 3.0, "control_mean_kl": float("inf")}, "distance is 3"),
        ({"least_kept": 0.98}, "least_kept: the least preserved module keeps 98.0%"),
        (
            {"least_kept": 0.98, "least_kept_module": "model.layers.0.mlp.up_proj"},
            "least_kept: model.layers.0.mlp.up_proj keeps 98.0% of the adapter's effect, 99% to",
        ),
        ({"least_kept": float("nan")}, "least_kept: the least preserved module keeps nan%"),
        ({"dtype": "bfloat16", "median_kept": 0.8}, "median_kept: the median module keeps 80.0%"),
        (
            {"dtype": "bfloat16", "most_kept": 1.6},
            "most_kept: the most amplified module keeps 160.0%",
        ),
        (NOT_RUN, "median_kept: missing, though 4 modules were compared"),
        ({"dtype": "int3"}, "cannot be read (got KeyError: 'int3')"),
        ({"mean_kl": None}, "cannot be read (got TypeError"),
        ({"mean_kl": "small"}, "cannot be read (got ValueError"),
    ],
)
def test_a_value_beyond_its_tolerance_is_reported_though_the_record_says_passed(
    values: dict[str, Any], part: str
) -> None:
    assert part in "; ".join(failures(**values))


def test_missing_values_are_reported() -> None:
    record = {"into": "dequantized", "dtype": "float32", "verification": {"passed": True}}
    assert recorded_merge_failures(record, "none") == [
        "verification: values cannot be read (got KeyError: 'computed_in')"
    ]


def test_layers_of_eight_bits_are_held_to_their_own_tolerances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(KEPT, "int8", (0.9, 1.1))
    assert failures(quantization="int8", least_kept=0.95) == []
    assert failures(quantization="nf4", least_kept=0.95) == [
        "least_kept: the least preserved module keeps 95.0% of the adapter's effect, 99% to 101% "
        "are allowed"
    ]
