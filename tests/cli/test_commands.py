"""A mistyped command is answered at once, and the help lists commands in the order of work."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_kit.cli import main
from lora_kit.preflight import make_plan as planning
from lora_kit.preflight.plan import Plan
from lora_kit.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
# In the order in which they are used: look, train, judge, ship; then what stands by itself.
COMMANDS = (
    *(
        "plan",
        "compare-backbones",
        "sweep",
        "train",
        "evaluate",
        "verdict",
        "select",
        "rescale",
        "continual",
        "compare",
        "merge",
        "combine",
        "export",
    ),
    *("release", "verify", "monitor", "run", "doctor", "recipes", "schema"),
)


def test_what_libraries_print_is_not_in_the_way_of_json(
    tiny_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """DeepSpeed's log, for one, goes to the stdout that it finds when it is imported."""
    (tmp_path / "recipe.yaml").write_text(tiny_recipe.to_yaml())
    make_plan = planning.make_plan

    def printing(*arguments: Any, **named: Any) -> Plan:
        print("[2026-11-29 12:00:00,000] [WARNING] a library says something")
        return make_plan(*arguments, **named)

    monkeypatch.setattr(planning, "make_plan", printing)
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(tmp_path / "recipe.yaml"), "--json"])
    captured = capsys.readouterr()
    assert ended.value.code == 0, captured.err
    assert json.loads(captured.out)["recipe"]
    assert "a library says something" in captured.err
    print("after the command")
    assert capsys.readouterr().out == "after the command\n"


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process that has imported nothing yet."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_mistake_in_a_recipe_is_told_before_the_libraries_are_loaded() -> None:
    """Importing torch takes seconds; whoever mistyped a field should not wait for that."""
    script = (
        "import sys\n"
        "from lora_kit.cli import main\n"
        "for command in ('plan', 'train', 'run'):\n"
        "    try:\n"
        "        main([command, 'quickstart', '--set', 'training.epochs=-1'])\n"
        "    except SystemExit as ended:\n"
        "        assert ended.code == 2, ended.code\n"
        "    else:\n"
        "        raise AssertionError(command)\n"
        "print(*sorted({'torch', 'transformers', 'datasets'} & sys.modules.keys()))\n"
    )
    done = run_python("-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("training.epochs") == 3, done.stderr
    assert done.stdout.split() == []


def test_a_line_is_printed_before_the_libraries_are_imported() -> None:
    script = (
        "import sys\n"
        "sys.modules['datasets'] = None\n"
        "from lora_kit.cli import main\n"
        "try:\n"
        "    main(['run', 'quickstart'])\n"
        "except ImportError:\n"
        "    print('torch' in sys.modules)\n"
    )
    done = run_python("-c", script)
    assert done.stdout.split() == ["False"], done.stderr
    assert done.stderr == "loading torch and transformers\n"


def test_the_help_lists_the_commands_in_the_order_of_the_work() -> None:
    done = run_python("-m", "lora_kit", "--help")
    assert done.returncode == 0, done.stderr
    _, _, listed = done.stdout.partition(" Commands ")
    assert re.findall(r"^│ ([\w-]+) ", listed, flags=re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["recipes"], ["schema"], ["schema", "--markdown"], ["doctor", "--help"]),
        pytest.param(["plan", "RECIPE"], marks=pytest.mark.slow),
        pytest.param(["plan", "RECIPE", "--json"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_output_that_nobody_reads_ends_a_command_quietly(
    arguments: list[str], tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny_recipe.model_dump_json())
    command = [str(recipe) if one == "RECIPE" else one for one in arguments]
    started = subprocess.Popen(
        [sys.executable, "-m", "lora_kit", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    assert started.stderr is not None
    started.stdout.close()
    # Of a command that takes a while, its first line, which came before.
    first = "loading torch and transformers\n" if "plan" in arguments else ""
    assert (started.wait(), started.stderr.read()) == (141, first)


def test_a_refusal_that_nobody_reads_has_its_status() -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "lora_kit", "plan", "nope"], cwd=ROOT, stderr=subprocess.PIPE
    )
    assert started.stderr is not None
    started.stderr.close()
    assert started.wait() == 2


@pytest.mark.slow
def test_what_one_process_does_needs_no_others_to_meet(tmp_path: Path) -> None:
    """Joined with the others, the first would wait for them, and they have left."""
    several = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}

    def verify_as(rank: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lora_kit", "verify", str(tmp_path)],
            cwd=ROOT,
            env=os.environ | several | {"RANK": rank, "LOCAL_RANK": rank},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    first, second = verify_as("0"), verify_as("1")
    assert (first.returncode, second.returncode) == (2, 0)
    assert str(tmp_path) in first.stderr
    assert second.stdout == second.stderr == ""


def test_debugging_says_where_an_error_comes_from() -> None:
    plain, debugged = (
        run_python("-m", "lora_kit", "plan", "nope"),
        run_python("-m", "lora_kit", "--debug", "plan", "nope"),
    )
    assert (plain.returncode, debugged.returncode) == (2, 2)
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debugged.stderr
    assert "nope: neither a file nor a bundled recipe" in debugged.stderr


def test_after_an_interrupt_the_way_to_continue_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Recipe, "load", interrupted)
    with pytest.raises(SystemExit) as end:
        main(["train", "quickstart"])
    assert end.value.code == 130
    assert "interrupted. Fix: repeat the command" in capsys.readouterr().err
