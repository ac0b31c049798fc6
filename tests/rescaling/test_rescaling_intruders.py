"""`lora-kit rescale --intruders` end to end."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lora_kit.adapter.saved import adapter_sha256
from lora_kit.evaluation.verdict_file import check_verdict, read_verdict
from lora_kit.pipeline import rescaling
from lora_kit.rescaling.choice import ScaleChoice, choose_scale
from lora_kit.rescaling.plot import scale_points
from tests.evaluation.counting import count_outcomes
from tests.rescaling.small_run import command, entries, recorded

# Every vector among the first two that is not a base vector's exact copy.
WIDE = ("--intruder-top-k", "2", "--intruder-threshold", "1")


def choose_last(candidates: Any) -> ScaleChoice:
    found = choose_scale(candidates)
    points = scale_points(candidates, found)
    assert [(p.series, p.label) for p in points[1:]] == [
        ("intruders 0.5", "1"),
        ("intruders 0", "1"),
    ]
    return ScaleChoice(len(candidates) - 1, "the last one", found.gains)


def test_factors_are_arms_of_their_own_and_the_file_is_what_is_proved(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rescaling, "choose_scale", choose_last)
    asked = count_outcomes(monkeypatch)
    arguments = ("rescale", run, "--scales", "1", "--intruders", "0.5,0", *WIDE)
    command(*arguments, "--json")
    record, printed = recorded(run), capsys.readouterr()
    assert json.loads(printed.out) == record
    arms = {"base", "adapter", "scale 1, intruders 0.5", "scale 1, intruders 0"}
    assert {e.arm for e in entries(run, "half-a")} == arms
    found = record["intruders"]
    assert (found["top_k"], found["threshold"], found["searched_layers"]) == (2, 1.0, 14)
    assert found["dimensions"] == sum(found["by_layer"].values()) > 0
    assert f"{found['dimensions']} intruder dimensions in {found['layers']} of 14" in printed.err
    assert record["scale"] == {
        "name": "1, intruders 0", "early": 1.0, "middle": 1.0, "late": 1.0, "intruders": 0.0,
    }  # fmt: skip
    differences = [one["tasks"][0]["difference"] for one in record["half_a"]]
    assert len(set(differences)) == 3

    check_verdict(run / "rescale" / "half-b")
    stored = read_verdict(run / "rescale" / "half-b")
    assert stored.lineage.adapter == record["adapter_rescaled"]
    assert stored.lineage.adapter == adapter_sha256(run / "adapter-rescaled")
    files = [run / name / "adapter_model.safetensors" for name in ("adapter", "adapter-rescaled")]
    before, after = map(load_file, files)
    assert {n: t.shape for n, t in before.items()} == {n: t.shape for n, t in after.items()}
    changed = {n.partition(".lora_")[0] for n, t in before.items() if not t.equal(after[n])}
    assert changed == set(found["by_layer"])

    first = sum(asked)
    command(*arguments)
    assert sum(asked) == first
    assert "intruder dimensions in" in capsys.readouterr().out
    # Another search gives other arms of the same names.
    command(*arguments, "--intruder-top-k", "3")
    half_a, half_b = (sum(one[half] for one in record["items"].values()) for half in "ab")
    assert sum(asked) == first + 2 * half_a + half_b
    assert recorded(run)["intruders"]["top_k"] == 3


def test_without_intruders_no_candidate_is_evaluated_twice(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(
        *("rescale", run, "--scales", "0.5", "--intruders", "0.5,0"),
        *("--intruder-threshold", "1e-6"),
    )
    printed = capsys.readouterr()
    assert "0 intruder dimensions in 0 of 14 layers (top 10, cosine" in printed.err
    assert "every factor gives the adapter as trained, so none is tried" in printed.err
    assert {e.arm for e in entries(run, "half-a")} == {"base", "adapter", "scale 0.5"}
    record = recorded(run)
    assert [one["name"] for one in record["half_a"]] == ["0.5", "1"]
    assert record["intruders"]["dimensions"] == 0
