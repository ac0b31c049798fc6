import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory, claim_run_directory, new_run_directory
from lora_kit.runtime.errors import RecipeError
from lora_kit.runtime.files import whole_directory, whole_file


def test_a_file_that_was_not_finished_is_not_there_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as temporary:
        temporary.write_text(str(1 / 0))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_takes_the_place_of_an_old_one_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with whole_directory(path) as temporary:
        (temporary / "one").write_text("1")
    with pytest.raises(ZeroDivisionError), whole_directory(path) as temporary:
        (temporary / "two").write_text(str(1 / 0))
    assert [file.name for file in path.iterdir()] == ["one"]
    with whole_directory(path) as temporary:
        (temporary / "two").write_text("2")
    assert [file.name for file in path.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [path]


def test_runs_are_numbered_and_never_written_over_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load("quickstart")
    assert new_run_directory(recipe, None).root == Path("runs/quickstart")
    Path("runs/quickstart").mkdir(parents=True)
    assert new_run_directory(recipe, None).root == Path("runs/quickstart-2")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    with pytest.raises(RecipeError, match="--overwrite"):
        new_run_directory(recipe, tmp_path / "mine")
    with pytest.raises(RecipeError, match="not a run"):
        new_run_directory(recipe, tmp_path / "mine", overwrite=True)
    (tmp_path / "mine" / "recipe.yaml").write_text("name: earlier")
    assert new_run_directory(recipe, tmp_path / "mine", overwrite=True).root == tmp_path / "mine"


def test_runs_that_begin_in_the_same_instant_take_directories_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load("quickstart")
    together = threading.Barrier(8)

    def begin(_: int) -> Path:
        together.wait()
        return claim_run_directory(recipe, None).root

    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(begin, range(8)))
    names = ["quickstart", *(f"quickstart-{number}" for number in range(2, 9))]
    assert sorted(claimed) == sorted(Path("runs") / name for name in names)
    assert all(path.is_dir() for path in claimed)


def test_a_name_that_was_taken_after_it_was_chosen_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load("quickstart")
    chosen = new_run_directory(recipe, None).root
    assert not Path("runs").exists(), "a choice makes nothing"
    chosen.mkdir(parents=True)
    (tmp_path / "runs" / "quickstart-2").symlink_to("nowhere")
    assert claim_run_directory(recipe, None).root == Path("runs/quickstart-3")


def test_an_output_that_another_run_made_in_between_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.load("quickstart")
    (tmp_path / "empty").mkdir()
    assert claim_run_directory(recipe, tmp_path / "empty").root == tmp_path / "empty"
    assert claim_run_directory(recipe, tmp_path / "new").root == tmp_path / "new"

    def faster(*_: object) -> RunDirectory:
        (tmp_path / "out").mkdir()
        return RunDirectory(tmp_path / "out")

    monkeypatch.setattr("lora_kit.runs.directory.new_run_directory", faster)
    with pytest.raises(RecipeError, match="out: another run has just started there"):
        claim_run_directory(recipe, tmp_path / "out")


def test_a_directory_without_a_recipe_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not a run directory"):
        RunDirectory(tmp_path).load_recipe()
