"""Combined adapters, and the files that are written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_kit.adapter.saved import adapter_sha256
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import load
from lora_kit.cli import main
from lora_kit.merging.combining.combine import CombinationOptions, combine
from lora_kit.merging.combining.show import describe_combination
from lora_kit.merging.combining.sources import read_adapter_source
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import MergeError
from tests.merging.combining import deltas, relative_error, weighted_sum


def test_linear_is_the_exact_sum_in_plain_peft(three: list[Path], tmp_path: Path) -> None:
    weights = [0.5, -0.25, 2.0]
    result = combine(three, CombinationOptions(weights=tuple(weights)), tmp_path / "sum")
    expected = weighted_sum(three, weights)
    found = deltas(tmp_path / "sum")
    assert set(found) == set(expected)
    assert max(relative_error(found[name], expected[name]) for name in expected) < 1e-6
    assert {module.rank for module in result.modules.values()} == {6, 10}
    assert result.partial == 10
    assert result.kept_energy == 1


def test_the_sum_of_factors_would_have_cross_terms(three: list[Path], tmp_path: Path) -> None:
    """PEFT's `linear` adds the factors, which is not the sum of the updates."""
    one, other = read_adapter_source(three[0]), read_adapter_source(three[2])
    name = other.modules[0]
    a, b = one.factors(name), other.factors(name)
    added = (a.b + b.b) @ (a.a + b.a)
    assert relative_error(added, a.b @ a.a + b.b @ b.a) > 0.5


def test_the_mean_is_the_default(three: list[Path], tmp_path: Path) -> None:
    combine(three, CombinationOptions(), tmp_path / "mean")
    expected = weighted_sum(three, [1 / 3] * 3)
    found = deltas(tmp_path / "mean")
    assert max(relative_error(found[name], expected[name]) for name in expected) < 1e-6


def test_rslora_and_patterns_are_scaled_as_peft_scales_them(tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    spec = BackboneSpec(model=str(tiny), quantization="none", dtype="float32")
    backbone = load(resolve(spec), spec)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "up_proj"],
        rank_pattern={"up_proj": 2},
        alpha_pattern={"q_proj": 3},
        use_rslora=True,
        init_lora_weights=False,
    )
    model = get_peft_model(backbone.model, config)
    model.peft_config["default"].base_model_name_or_path = str(tiny)
    model.save_pretrained(str(tmp_path / "patterns"))
    expected = deltas(tmp_path / "patterns")
    combine(
        [tmp_path / "patterns"] * 2, CombinationOptions(weights=(0.75, 0.25)), tmp_path / "same"
    )
    found = deltas(tmp_path / "same")
    assert max(relative_error(found[name], expected[name]) for name in expected) < 1e-6


def test_svd_is_the_best_approximation_and_says_what_it_kept(
    three: list[Path], tmp_path: Path
) -> None:
    result = combine(three, CombinationOptions("svd", rank=3), tmp_path / "cut")
    expected = weighted_sum(three, [1 / 3] * 3)
    found = deltas(tmp_path / "cut")
    for name, delta in expected.items():
        left, values, right = torch.linalg.svd(delta)
        best = (left[:, :3] * values[:3]) @ right[:3]
        assert relative_error(found[name], best) < 1e-5, name
        share = float(values[:3].square().sum() / values.square().sum())
        assert result.modules[name].kept_energy == pytest.approx(share, abs=1e-6)
    assert 0.2 < result.worst[1].kept_energy < result.kept_energy < 1
    assert {module.rank for module in result.modules.values()} == {3}


def test_svd_with_room_for_all_is_the_sum(three: list[Path], tmp_path: Path) -> None:
    result = combine(three, CombinationOptions("svd", rank=10), tmp_path / "whole")
    expected = weighted_sum(three, [1 / 3] * 3)
    assert result.kept_energy == pytest.approx(1)
    found = deltas(tmp_path / "whole")
    assert max(relative_error(found[name], expected[name]) for name in expected) < 1e-6


def ties_by_hand(updates: list[torch.Tensor], density: float) -> torch.Tensor:
    """Value by value as the paper's algorithm 1 says, weights of one, lambda of one."""
    trimmed = []
    for update in updates:
        count = int(density * update.numel())
        least = update.abs().flatten().sort(descending=True).values[count - 1]
        trimmed.append(torch.where(update.abs() >= least, update, 0))
    stacked = torch.stack(trimmed)
    sign = torch.where(stacked.sum(0) >= 0, 1, -1)
    result = torch.zeros_like(updates[0])
    for row in range(result.shape[0]):
        for column in range(result.shape[1]):
            agreeing = [
                float(value)
                for value in stacked[:, row, column]
                if value != 0 and value.sign() == sign[row, column]
            ]
            result[row, column] = sum(agreeing) / len(agreeing) if agreeing else 0
    return result


def test_ties_is_the_papers(three: list[Path], tmp_path: Path) -> None:
    # A rank as large as the matrix keeps all of it.
    result = combine(three, CombinationOptions("ties", rank=64, density=0.3), tmp_path / "ties")
    assert result.kept_energy == pytest.approx(1)
    found, sources = deltas(tmp_path / "ties"), [deltas(path) for path in three]
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"):
        expected = ties_by_hand([source[name] for source in sources if name in source], 0.3)
        assert relative_error(found[name], expected) < 1e-5, name


def test_ties_of_one_adapter_twice_is_the_adapter_trimmed(
    three: list[Path], tmp_path: Path
) -> None:
    """By PEFT's formula weights of one half would halve it: a second division by the number."""
    combine([three[0]] * 2, CombinationOptions("ties", rank=64, density=1.0), tmp_path / "same")
    found, expected = deltas(tmp_path / "same"), deltas(three[0])
    assert max(relative_error(found[name], expected[name]) for name in expected) < 1e-5


def test_a_light_adapter_has_a_light_vote(three: list[Path], tmp_path: Path) -> None:
    how = CombinationOptions("ties", weights=(0.999, 0.001), rank=64, density=1.0)
    combine(three[:2], how, tmp_path / "light")
    found, heavy = deltas(tmp_path / "light"), deltas(three[0])
    same = [(found[name].sign() == heavy[name].sign()).float().mean() for name in heavy]
    assert min(same) > 0.99


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_draws_by_its_seed_alone(method: Any, three: list[Path], tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        combine(three, CombinationOptions(method, seed=seed), tmp_path / name)
        return load_file(tmp_path / name / "adapter_model.safetensors")

    torch.manual_seed(1)
    first = weights("first", 0)
    torch.manual_seed(2)
    again, other = weights("again", 0), weights("other", 1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_dare_keeps_the_expectation(three: list[Path], tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj"
    expected = weighted_sum(three[:2], [0.5, 0.5])[name]
    mean = torch.zeros_like(expected)
    for seed in range(40):
        how = CombinationOptions("dare_linear", rank=64, density=0.5, seed=seed)
        combine(three[:2], how, tmp_path / f"draw-{seed}")
        mean += deltas(tmp_path / f"draw-{seed}")[name].double() / 40
    # One draw is off by about 1, the mean of forty by a sixth of it.
    assert relative_error(mean, expected) < 0.25
    assert relative_error(deltas(tmp_path / "draw-0")[name], expected) > 0.5


def test_weights_by_examples_are_those_of_federated_averaging(
    three: list[Path], tmp_path: Path
) -> None:
    runs = []
    for number, (path, used) in enumerate(zip(three[:2], (300, 100), strict=True)):
        run = tmp_path / f"run-{number}"
        run.mkdir()
        path.rename(run / "adapter")
        (run / "recipe.yaml").write_text("name: client\n")
        (run / "run.json").write_text(json.dumps({"data": {"rows": 999, "used": used}}))
        runs.append(run)
    # A run, and the adapter in a run.
    targets = [runs[0], runs[1] / "adapter"]
    result = combine(targets, CombinationOptions(weigh_by_examples=True), tmp_path / "round")
    assert [source["weight"] for source in result.sources] == [0.75, 0.25]
    assert [source["name"] for source in result.sources] == ["run-0", "run-1"]
    assert result.examples == 400
    expected = weighted_sum([run / "adapter" for run in runs], [0.75, 0.25])
    found = deltas(tmp_path / "round")
    assert max(relative_error(found[name], expected[name]) for name in expected) < 1e-6
    # A round's result knows how many examples are in it.
    with pytest.raises(MergeError, match=r"training examples unknown \(got none for .*three\)"):
        combine(
            [tmp_path / "round", three[2]],
            CombinationOptions(weigh_by_examples=True),
            tmp_path / "next",
        )
    assert read_adapter_source(tmp_path / "round").examples == 400


def test_one_adapter_is_only_lowered_in_rank(three: list[Path], tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="only be combined by svd"):
        combine(three[:1], CombinationOptions(), tmp_path / "alone")
    result = combine(three[:1], CombinationOptions("svd", rank=2), tmp_path / "lower")
    assert {module.rank for module in result.modules.values()} == {2}


def test_the_record_says_what_went_in_and_no_path_of_this_machine(
    three: list[Path], tmp_path: Path
) -> None:
    combine(three, CombinationOptions("ties"), tmp_path / "ties")
    record = json.loads((tmp_path / "ties" / "combined.json").read_text())
    assert [s["sha256"] for s in record["sources"]] == [adapter_sha256(path) for path in three]
    assert [s["name"] for s in record["sources"]] == ["one", "two", "three"]
    assert (record["method"], record["density"], record["seed"]) == ("ties", 0.2, None)
    assert 0 < record["kept_energy"] < 1
    assert str(tmp_path) not in (tmp_path / "ties" / "combined.json").read_text()


def test_nothing_takes_the_place_of_other_files(three: list[Path], tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=r"already exists .* not empty"):
        combine(three[:2], CombinationOptions(), three[2])
    assert (three[2] / "adapter_model.safetensors").is_file()


def test_a_combination_is_attached_as_any_adapter_of_ours(
    tiny: Path, three: list[Path], tmp_path: Path
) -> None:
    from lora_kit.runs.session import open_subject

    combine(three, CombinationOptions("svd"), tmp_path / "cut")
    subject = open_subject(tmp_path / "cut", None)
    assert subject.backbone.files.directory == tiny
    model = subject.model
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        on = model(ids).logits
        with model.disable_adapter():
            assert not torch.allclose(on, model(ids).logits)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_the_command_says_what_it_did_and_its_result_is_evaluated(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ("--method", "svd", "--rank", 3, "--weight", 1, "--weight", 0.5, "--weight", 0.5)
    assert run("combine", *three, "--output", tmp_path / "cut", *how) == 0
    printed = capsys.readouterr().out
    assert "14 modules of 3 adapters, rank 3" in printed
    assert "three: weight 0.5, 4 modules" in printed
    assert "10 modules are not changed by all adapters" in printed
    assert "of the combined updates' energy, and least in " in printed
    suite = tmp_path / "quiz.yaml"
    suite.write_text(
        "name: quiz\nrole: retention\ntasks:\n  - {name: prose, kind: loss, "
        "source: python-reference, limit: 8, max_length: 32, margin: 2}\n"
    )
    assert run("evaluate", tmp_path / "cut", "--suite", suite, "--json") in (0, 3, 4)
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["decision"] in ("PASS", "FAIL", "INCONCLUSIVE")


def test_a_refusal_ends_with_two(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("combine", three[0], tmp_path, "--output", tmp_path / "out") == 2
    assert "neither a run nor an adapter in safetensors" in capsys.readouterr().err
    assert run("combine", *three, "--output", tmp_path / "out", "--method", "median") == 2
    assert not (tmp_path / "out").exists()


def test_the_same_adapter_twice_and_missing_fingerprints_are_reported(
    three: list[Path], tmp_path: Path
) -> None:
    (three[0] / "backbone.json").unlink()
    text = describe_combination(combine([three[0]] * 2, CombinationOptions(), tmp_path / "twice"))
    assert "an adapter is given twice" in text
    assert "does not show that the weights are the same" in text


def test_a_common_chat_template_goes_with_the_combined_adapter(
    three: list[Path], tmp_path: Path
) -> None:
    for adapter in three[:2]:
        (adapter / "chat_template.jinja").write_text("{{ messages }}")
    combine(three[:2], CombinationOptions(), tmp_path / "sum")
    assert (tmp_path / "sum" / "chat_template.jinja").read_text() == "{{ messages }}"
