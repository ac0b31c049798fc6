"""Backbones compared before any training."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.suite import load_suites
from lora_kit.pipeline import compare_backbones, evaluate, train
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import RecipeError
from lora_kit.selection.measure import _mean_score
from lora_kit.selection.record import BackboneResult, MeanScore, TaskScore, rank_backbones
from tests.evaluation.counting import count_outcomes
from tests.rewarding import reward_recipe
from tests.two_stacks import write_t5

WORDS = {"good": ("lovely", "splendid"), "bad": ("awful", "dreadful")}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def labelled(numbers: range) -> list[dict[str, str]]:
    return [
        {"text": f"Number {n} was {word}.", "label": label}
        for n in numbers
        for label, words in WORDS.items()
        for word in words
    ]


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path) -> Recipe:
    """Reviews to classify as good or bad, and texts for the loss."""
    write_rows(tmp_path / "train.jsonl", labelled(range(8)))
    write_rows(tmp_path / "test.jsonl", labelled(range(8, 14)))
    write_rows(tmp_path / "texts.jsonl", [{"text": f"{n} follows {n - 1}."} for n in range(1, 9)])
    tasks = [
        {"name": "sides", "kind": "classification", "source": str(tmp_path / "test.jsonl")},
        {"name": "texts", "kind": "loss", "source": str(tmp_path / "texts.jsonl")},
    ]
    suite = {"name": "reviews", "role": "gain", "tasks": tasks}
    (tmp_path / "reviews.yaml").write_text(yaml.safe_dump(suite))
    return Recipe.model_validate(
        {
            "name": "reviews",
            "backbone": {"model": str(tiny), "quantization": "none", "dtype": "float32"},
            "adapter": {"rank": 4},
            "data": {"train": [{"source": str(tmp_path / "train.jsonl")}], "max_length": 64},
            "training": {"batch_size": 4},
            "evaluation": {"suites": [str(tmp_path / "reviews.yaml")]},
        }
    )


@pytest.fixture(scope="session")
def other(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with other random weights, and a licence."""
    from transformers import AutoConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("other") / "other"
    shutil.copytree(tiny, directory)
    torch.manual_seed(5)
    LlamaForCausalLM(AutoConfig.from_pretrained(tiny)).save_pretrained(directory)
    (directory / "README.md").write_text("---\nlicense: mit\n---\n")
    return directory


@pytest.mark.slow
def test_backbones_are_measured_as_the_evaluation_measures_the_base(
    recipe: Recipe, tiny: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    nowhere = tmp_path / "nowhere"
    found = compare_backbones(recipe, [str(tiny), str(other), str(nowhere)], tmp_path / "scouted")
    by_name = {one.backbone: one for one in found}
    assert found[-1].backbone == str(nowhere)
    assert "no such file" in found[-1].refused
    assert sorted(one.rank for one in found) == [0, 1, 2]
    assert by_name[str(other)].license == "mit"
    assert by_name[str(tiny)].license is None
    assert (by_name[str(tiny)].tokens_per_second or 0) > 0
    assert by_name[str(tiny)].parameters == by_name[str(other)].parameters == 336_192

    sides, texts = by_name[str(tiny)].scores
    verdict = evaluate(train(recipe, tmp_path / "run").session).verdict
    base = {task.task: task for task in verdict.suites[0].tasks}
    assert sides.zero_shot is not None
    assert texts.zero_shot is not None
    assert sides.zero_shot.mean == pytest.approx(base["sides"].base)
    bits = next(m for m in base["texts"].measures if m.name == "bits_per_byte")
    assert texts.zero_shot.mean == pytest.approx(bits.base)
    assert (texts.unit, texts.higher_is_better) == ("bits/byte", False)
    # The words tell the sides apart, which even random features keep.
    assert sides.probe is not None
    assert sides.probe.mean > 0.9
    assert texts.probe is None
    assert sides.few_shot is not None

    asked = count_outcomes(monkeypatch)
    again = compare_backbones(recipe, [str(other)], tmp_path / "scouted")
    assert again[0].scores == by_name[str(other)].scores
    assert asked == []
    record = json.loads((tmp_path / "scouted" / "backbones.json").read_text())
    assert record["backbones"] == json.loads(json.dumps([one.to_dict() for one in again]))


def test_encoders_are_compared_by_what_their_features_tell(
    recipe: Recipe, tiny: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    document = recipe.model_dump(mode="json")
    document["training"]["objective"] = "classification"
    document["data"]["max_length"] = 40
    both = Recipe.model_validate(document)
    with pytest.raises(
        RecipeError, match=r"reviews/texts: a classifier supports only .*got kind loss"
    ):
        compare_backbones(both, [str(tiny_encoder)], tmp_path / "refused")
    suite = yaml.safe_load((tmp_path / "reviews.yaml").read_text())
    suite["tasks"] = suite["tasks"][:1]
    (tmp_path / "reviews.yaml").write_text(yaml.safe_dump(suite))
    found = {
        one.backbone: one
        for one in compare_backbones(both, [str(tiny_encoder), str(tiny)], tmp_path)
    }
    assert not any(one.refused for one in found.values())
    (of_encoder,), (of_decoder,) = (found[str(path)].scores for path in (tiny_encoder, tiny))
    assert of_encoder.zero_shot is of_encoder.few_shot is None
    assert of_encoder.probe is not None
    assert of_encoder.probe.mean > 0.9
    assert of_decoder.zero_shot is not None
    assert all((one.tokens_per_second or 0) > 0 for one in found.values())
    assert sorted(one.rank for one in found.values()) in ([1, 1], [1, 2])


def test_encoders_tell_nothing_of_pairs_before_they_are_trained(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    recipe = reward_recipe(tiny_encoder, tmp_path)
    with pytest.raises(RecipeError, match=r"encoder.*training\.objective reward") as refused:
        compare_backbones(recipe, [str(tiny_encoder)], tmp_path / "scouted")
    assert "label" not in str(refused.value)


def test_what_cannot_be_compared_is_refused(recipe: Recipe, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--backbones: names no backbone, or one twice"):
        compare_backbones(recipe, [str(tiny), str(tiny)], tmp_path / "scouted")
    with pytest.raises(RecipeError, match=r"nowhere: .*no such file"):
        compare_backbones(recipe, [str(tmp_path / "nowhere")], tmp_path / "scouted")
    document = recipe.model_dump(mode="json")
    document["evaluation"]["suites"] = ["core-retention"]
    with pytest.raises(RecipeError, match="no suite has the role gain"):
        compare_backbones(Recipe.model_validate(document), [str(tiny)], tmp_path / "scouted")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"packing": True}}, "data.packing supports only decoder-only backbones"),
        (
            {"adapter": {"method": "last-1"}},
            "adapter.method: last-1 supports only decoder-only backbones",
        ),
    ],
)
def test_a_backbone_that_train_refuses_is_refused_and_the_others_are_measured(
    recipe: Recipe,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, dict[str, Any]],
    message: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    suite = yaml.safe_load((tmp_path / "reviews.yaml").read_text())
    suite["tasks"] = suite["tasks"][:1]
    (tmp_path / "reviews.yaml").write_text(yaml.safe_dump(suite))
    (tmp_path / "t5").mkdir()
    divided = write_t5(tmp_path / "t5")
    document = recipe.model_dump(mode="json", exclude_unset=True)
    document |= {name: document[name] | change for name, change in changes.items()}
    if "adapter" in changes:
        document["adapter"] = changes["adapter"]
    found = compare_backbones(
        Recipe.model_validate(document), [str(divided), str(tiny)], tmp_path / "scouted"
    )
    assert [one.backbone for one in found] == [str(tiny), str(divided)]
    assert found[0].tokens_per_second
    assert message in found[1].refused
    assert (tmp_path / "scouted" / "backbones.json").is_file()


def test_a_task_whose_template_names_another_field_has_a_probe(
    recipe: Recipe, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = [{"sentence": row["text"], "label": row["label"]} for row in labelled(range(8, 14))]
    write_rows(tmp_path / "test.jsonl", asked)
    suite = yaml.safe_load((tmp_path / "reviews.yaml").read_text())
    suite["tasks"] = [suite["tasks"][0] | {"template": "Review: {sentence}\nIt is"}]
    (tmp_path / "reviews.yaml").write_text(yaml.safe_dump(suite))
    (found,) = compare_backbones(recipe, [str(tiny)], tmp_path / "scouted")
    (sides,) = found.scores
    assert sides.probe is not None
    # As good as where the field is called `text`.
    assert sides.probe.mean > 0.9


def entry(item: str, score: float | None) -> Entry:
    return Entry("base", "reviews", "sides", item, item, score, "", "", "", 1, 0.1, {}, {})


def test_scores_that_are_no_numbers_are_left_out_of_the_mean(recipe: Recipe) -> None:
    (suite,) = load_suites(recipe.evaluation.suites)
    spec = suite.tasks[0]
    entries = [entry("a", 1.0), entry("b", float("inf")), entry("c", None), entry("d", 0.0)]
    level = _mean_score([*entries, entry("e", float("nan"))], spec)
    assert level is not None
    assert level.mean == 0.5
    assert _mean_score(entries[1:3], spec) is None


def one_of(name: str, speed: float, *scores: tuple[bool, float, float | None]) -> BackboneResult:
    def level(value: float) -> MeanScore:
        return MeanScore(value, -np.inf, np.inf)

    return BackboneResult(
        name,
        scores=tuple(
            TaskScore("t", "u", higher, level(zero), level(few) if few is not None else None, None)
            for higher, zero, few in scores
        ),
        tokens_per_second=speed,
    )


def test_the_rank_is_the_mean_over_tasks_of_what_does_best_on_each() -> None:
    several = [
        one_of("slow", 1.0, (True, 0.5, 0.9), (False, 2.0, None)),
        one_of("fast", 9.0, (True, 0.8, None), (False, 1.0, 3.0)),
        one_of("bad", 99.0, (True, 0.1, 0.2), (False, 9.0, None)),
        BackboneResult("refused", refused="no"),
    ]
    found = [(one.backbone, one.rank) for one in rank_backbones(several)]
    assert found == [("fast", 1), ("slow", 1), ("bad", 3), ("refused", 0)]
