"""Cross-validation: folds of whole groups, adapters that share rows, one verdict."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lora_kit.cli import main
from lora_kit.data.folds import split_folds
from lora_kit.pipeline import train
from lora_kit.pipeline.cross_validation import cross_validate
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import DataError, RecipeError
from lora_kit.statistics.folds import compare_folds
from tests.classifying import classes_recipe


def test_groups_stay_together_and_classes_are_shared_out() -> None:
    groups = np.arange(120) // 3
    labels = ["rare" if group % 5 == 0 else "common" for group in groups]
    folds = split_folds(labels, groups, 4, 0)
    assert all(len(set(folds[groups == group])) == 1 for group in range(40))
    assert set(Counter(folds.tolist()).values()) == {30}
    rare = Counter(folds[np.array(labels) == "rare"].tolist())
    assert set(rare.values()) == {6}
    assert split_folds(None, groups, 4, 0).tolist() != split_folds(None, groups, 4, 1).tolist()


def test_folds_that_cannot_be_are_refused() -> None:
    groups = np.array([0, 0, 1, 1])
    with pytest.raises(DataError, match="got 3 folds, 2 groups"):
        split_folds(["a", "b", "a", "b"], groups, 3, 0)
    with pytest.raises(DataError, match=r"held out in one fold .got 'b'"):
        split_folds(["a", "b", "a", "a"], np.array([0, 1, 2, 3]), 2, 0)


def test_the_interval_is_that_of_nadeau_and_bengio() -> None:
    differences = [0.1, 0.3, 0.2, 0.25, 0.15]
    interval, p = compare_folds(differences, [20] * 5, 0.05)
    # Of 100 rows, 20 are held out and 80 trained on.
    error = np.std(differences, ddof=1) * math.sqrt(1 / 5 + 20 / 80)
    assert interval.delta == pytest.approx(0.2)
    assert interval.high - 0.2 == pytest.approx(error * stats.t.ppf(0.975, 4))
    assert p == pytest.approx(2 * stats.t.sf(0.2 / error, 4))
    assert (interval.items, interval.clusters) == (100, 5)
    same, p = compare_folds([0.1, 0.1], [5, 5], 0.05)
    assert (same.low, same.high, p) == (-math.inf, math.inf, 1.0)
    with pytest.raises(ValueError, match="two folds"):
        compare_folds([0.1], [5], 0.05)


def test_each_row_is_judged_once_by_an_adapter_that_was_not_shown_it(
    tiny_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = _recipe(tiny_encoder, tmp_path)
    verdict = cross_validate(recipe, tmp_path / "folds")
    assert sum(verdict.rows) == 24
    assert [one.arm for one in verdict.against] == ["base", "probe"]
    folds = [tmp_path / "folds" / f"fold-{number}" for number in range(2)]
    texts = [
        [
            {json.loads(line)["text"] for line in (fold / name).read_text().splitlines()}
            for name in ("train.jsonl", "held_out.jsonl")
        ]
        for fold in folds
    ]
    assert all(not trained & held_out for trained, held_out in texts)
    assert len(texts[0][1] | texts[1][1]) == 24
    record = json.loads((tmp_path / "folds" / "folds.json").read_text())
    assert record["decision"] == verdict.decision
    # Again, from what is there, as a command.
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    adapters = [(fold / "run" / "adapter" / "adapter_model.safetensors").stat() for fold in folds]
    with pytest.raises(SystemExit) as ended:
        main(["run", str(path), "--output", str(tmp_path / "folds")])
    assert ended.value.code == {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}[verdict.decision]
    assert f"Recipe: {verdict.decision}" in capsys.readouterr().out
    assert adapters == [
        (fold / "run" / "adapter" / "adapter_model.safetensors").stat() for fold in folds
    ]
    with pytest.raises(SystemExit) as ended:
        main(["run", str(path), "--seeds", "2"])
    assert ended.value.code == 2
    with pytest.raises(RecipeError, match="only lora-kit run leaves rows out"):
        train(recipe, tmp_path / "run")


def test_each_source_is_a_domain_that_was_not_seen(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    document = _recipe(tiny_encoder, tmp_path).model_dump(mode="json")
    first = Path(document["data"]["train"][0]["source"])
    lines = first.read_text().splitlines()
    # Two of the first source's texts are in the other one as well.
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join([*(one.replace("number", "count") for one in lines), *lines[:2]]))
    document["data"]["train"].append({"source": str(other)})
    document["data"]["cross_validation"] = "sources"
    document["data"]["audit"] |= {"duplicates": 1.0}
    document["evaluation"]["arms"] = ["base", "adapter"]
    verdict = cross_validate(Recipe.model_validate(document), tmp_path / "folds")
    assert verdict.rows == (24, 26)
    assert [Path(name).name for name in verdict.names] == ["train.jsonl", "other.jsonl"]
    trained = [
        (tmp_path / "folds" / f"fold-{number}" / "train.jsonl").read_text().splitlines()
        for number in range(2)
    ]
    assert not set(map(str, trained[1])) & set(lines[:2])
    assert len(trained[0]) < 26
    assert len(trained[1]) < 24
    document["data"]["train"].pop()
    with pytest.raises(DataError, match="sources needs two sources"):
        cross_validate(Recipe.model_validate(document), tmp_path / "one")


def _recipe(model: Path, folder: Path) -> Recipe:
    document = classes_recipe(model, folder, adapter={"method": "head"}).model_dump(mode="json")
    document["data"]["cross_validation"] = 2
    document["evaluation"]["arms"] = ["base", "adapter", "probe"]
    return Recipe.model_validate(document)
