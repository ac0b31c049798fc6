"""`select`: a file of texts to be filled in, from a trained classifier."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_kit import pipeline
from lora_kit.cli import main
from lora_kit.data.dataset import open_rows
from lora_kit.data.head_targets import head_outputs
from lora_kit.pipeline.next_labels import select_texts
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import DataError, LoraKitError, RecipeError
from tests.classifying import classes_recipe

TEXTS = [f"{number} of {word}s" for number in range(6) for word in ("apple", "zinc", "crow")]


@pytest.fixture(scope="module")
def run(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    recipe = classes_recipe(tiny_encoder, folder, adapter={"method": "head"})
    return pipeline.train(recipe, folder / "run").run.root


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return _write(tmp_path / "pool.jsonl", TEXTS)


def _write(path: Path, texts: list[str], column: str = "text") -> Path:
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("by", ["both", "margin"])
def test_a_chosen_text_can_be_labelled_and_trained_on(
    run: Path, pool: Path, tmp_path: Path, by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "chosen.jsonl"
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "select",
                str(run),
                str(pool),
                "--n",
                "5",
                "--by",
                by,
                "--output",
                str(output),
                "--json",
            ]
        )
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert said["rows"] == rows
    assert (said["texts"], len(rows), len({row["text"] for row in rows})) == (18, 5, 5)
    for row in rows:
        assert TEXTS[int(row["id"].rpartition(":")[2]) - 1] == row["text"]
        assert row["label"] is None
        assert row["predicted"] in {"fruit", "metal", "bird"}
        assert row["reason"].startswith(row["predicted"])
        assert (row["distance"] is not None) == (by == "both")
    _trained_on(output, run, match="needs a class in each row")
    filled = [row | {"label": row["predicted"]} for row in rows]
    output.write_text("".join(json.dumps(row) + "\n" for row in filled))
    _trained_on(output, run)


def _trained_on(source: Path, run: Path, match: str = "") -> None:
    document = Recipe.load(run / "recipe.yaml").model_dump(mode="json")
    document["data"]["train"].append({"source": str(source)})
    recipe = Recipe.model_validate(document)
    rows = open_rows(recipe.data, recipe.seed, "classification")
    if match:
        with pytest.raises(DataError, match=match):
            head_outputs(rows, recipe)
    else:
        assert head_outputs(rows, recipe) is not None
        assert len(rows) == 29


def test_a_labelled_text_is_not_chosen_again(run: Path, tmp_path: Path) -> None:
    pool = _write(tmp_path / "pool.jsonl", [*TEXTS, "Number  1 of PEARS"])
    said = r"labelled already \(got 1 of 19, such as .*pool\.jsonl:19 is .*train\.jsonl:2\)"
    with pytest.raises(DataError, match=said):
        select_texts(run, pool, 5, output=tmp_path / "chosen.jsonl")
    assert not (tmp_path / "chosen.jsonl").exists()


def test_a_filled_in_file_is_kept_and_another_column_is_read(run: Path, tmp_path: Path) -> None:
    pool = _write(tmp_path / "pool.jsonl", TEXTS, "body")
    select_texts(run, pool, 2, "entropy", tmp_path / "chosen.jsonl", "body")
    before = (tmp_path / "chosen.jsonl").read_bytes()
    with pytest.raises(RecipeError, match=r"exists, and may have labels.*--output"):
        select_texts(run, pool, 2, "entropy", tmp_path / "chosen.jsonl", "body")
    assert (tmp_path / "chosen.jsonl").read_bytes() == before


REFUSED: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a strategy": (
        lambda run, pool: select_texts(run, pool, 2, "best"),
        "--by: unknown .got 'best",
    ),
    "a number": (lambda run, pool: select_texts(run, pool, 19), r"--n: .*got 19, it has 18"),
    "a file": (lambda run, pool: select_texts(run, pool / "no", 2), "no such file or folder"),
    "a run": (lambda run, pool: select_texts(pool.parent, pool, 2), "not a run directory"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_mistake_is_told_before_the_model_is_loaded(
    run: Path, pool: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_kit.pipeline.next_labels.open_run", None)
    select, said = REFUSED[what]
    with pytest.raises(LoraKitError, match=said):
        select(run, pool)


def test_a_run_without_classes_is_refused(tmp_path: Path, pool: Path, tiny_recipe: Recipe) -> None:
    (tmp_path / "recipe.yaml").write_text(tiny_recipe.to_yaml())
    with pytest.raises(RecipeError, match=r"only a classifier .*got training\.objective sft"):
        select_texts(tmp_path, pool, 2)
