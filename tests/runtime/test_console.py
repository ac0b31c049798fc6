"""Texts on a terminal: control characters are shown and not obeyed, markup is not interpreted."""

import io
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from lora_kit.cli.output import print_json
from lora_kit.runtime import console
from lora_kit.runtime.console import INVISIBLE, VisibleConsole, meter, visible

ESCAPES = {
    "a title": "\x1b]0;title\x07",
    "a colour": "\x1b[31mred",
    "clearing": "\x1b[2J\x9b2J",
    "backspaces": "safe\x08\x08\x08\x08evil",
    "a return": "safe\revil",
    "an override": "a\u202eb\u2066c",
    "a surrogate": "\ud800",
}
OBEYED = re.compile("[" + "".join(map(chr, INVISIBLE)).replace("\n", "").replace("\t", "") + "]")


def shown(*objects: Any, **options: Any) -> str:
    stream = io.StringIO()
    VisibleConsole(file=stream, width=10_000, color_system=None).print(*objects, **options)
    return stream.getvalue()


CHARACTERS = st.characters() | st.sampled_from([chr(code) for code in INVISIBLE])


# rich writes spaces for a tabulator.
@given(st.text(CHARACTERS.filter(lambda one: one != "\t")))
def test_no_character_is_obeyed_and_none_is_lost(text: str) -> None:
    written = shown(text, soft_wrap=True, markup=False)
    assert not OBEYED.search(written)
    assert written == f"{visible(text)}\n"


@pytest.mark.parametrize("text", ESCAPES.values(), ids=ESCAPES)
@pytest.mark.parametrize("place", ["cell", "header", "title"])
def test_tables_show_control_characters(text: str, place: str) -> None:
    table = Table("header" + text * (place == "header"), title=text if place == "title" else "")
    table.add_row(text if place == "cell" else "")
    written = shown(table)
    assert not OBEYED.search(written)
    assert "[U+" in written


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_shows_control_characters_and_markup(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    replaced = VisibleConsole(
        file=stream, force_terminal=is_terminal, width=200, color_system=None, legacy_windows=False
    )
    monkeypatch.setattr(console, "stderr", replaced)
    with meter("reading a\x9b2J[red]b", 2) as progress:
        progress.advance(2, note="of c\x9b2J[bold]d")
    written = stream.getvalue()
    assert "a[U+009B]2J[red]b" in written
    assert "c[U+009B]2J[bold]d" in written


def test_pictures_are_not_made_of_names() -> None:
    assert shown("label :bomb:") == "label :bomb:\n"


@pytest.mark.parametrize("text", ESCAPES.values(), ids=ESCAPES)
def test_json_is_the_same_value_without_control_characters(text: str, capsys: Any) -> None:
    print_json({text: [text]})
    written = capsys.readouterr().out
    assert not OBEYED.search(written)
    assert json.loads(written) == {text: [text]}
